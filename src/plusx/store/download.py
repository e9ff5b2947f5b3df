"""Download published files over HTTP and check their digests."""

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path


_TIMEOUT = 30  # seconds without a byte
_CHUNK = 1 << 20


def download(url: str, digest: str, max_bytes: int, by_hand: Path) -> bytes:
    """Return the bytes of a published file.

    digest: the algorithm, a colon, and the digest or its beginning in hexadecimal.
    by_hand: where a user may put the file instead; every error names it.

    Raises OSError if the file cannot be downloaded, or is not the published one.
    """
    assert url.startswith(("https://", "http://")), url
    hint = f"Download it yourself and put it at {by_hand}"
    chunks, length = [], 0
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "plusx"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            content_length = response.headers.get("Content-Length", "")
            while chunk := response.read(_CHUNK):
                chunks.append(chunk)
                length += len(chunk)
                if length > max_bytes:
                    raise OSError(f"more than {max_bytes:,} bytes were received")
        if content_length.isdigit() and length != int(content_length):
            raise OSError(f"{length:,} of {int(content_length):,} bytes were received")
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            reason = f"HTTP {error.code} {error.reason}"
        raise OSError(
            f"{by_hand.name} could not be downloaded from {url}: {reason}. {hint}"
        ) from error
    data = b"".join(chunks)
    algorithm, _, published = digest.partition(":")
    received = hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()
    if not received.startswith(published):
        raise OSError(
            f"the file at {url} is not the published one (its {algorithm} is {received}, not "
            f"{published}); it was discarded. {hint}"
        )
    return data
