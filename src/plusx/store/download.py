"""Published files, fetched over HTTP and checked against their digest."""

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path


_TIMEOUT = 30  # seconds without a byte
_CHUNK = 1 << 20


def download(url: str, digest: str, max_bytes: int, by_hand: Path) -> bytes:
    """The bytes of a published file.

    digest: the algorithm, a colon, and the digest in hexadecimal or its beginning
    by_hand: where a user may put the file instead; every error names it
    OSError: the file cannot be fetched, or is not the one that was published.
    """
    assert url.startswith(("https://", "http://")), url
    hint = f"Fetch it by hand and put it at {by_hand}"
    parts, length = [], 0
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "plusx"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            announced = answer.headers.get("Content-Length", "")
            while part := answer.read(_CHUNK):
                parts.append(part)
                length += len(part)
                if length > max_bytes:
                    raise OSError(f"more than {max_bytes:,} bytes came")
        if announced.isdigit() and length != int(announced):
            raise OSError(f"{length:,} of {int(announced):,} bytes came")
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            reason = f"HTTP {error.code} {error.reason}"
        raise OSError(
            f"{by_hand.name} could not be fetched from {url}: {reason}. {hint}"
        ) from error
    data = b"".join(parts)
    algorithm, _, published = digest.partition(":")
    received = hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()
    if not received.startswith(published):
        raise OSError(
            f"what came from {url} is not the published file (its {algorithm} is {received}, not "
            f"{published}), and nothing was kept. {hint}"
        )
    return data
