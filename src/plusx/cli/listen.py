"""The command listen: keywords and words in sound as it arrives."""

import sys
from io import BufferedIOBase
from typing import Annotated

from cyclopts import Parameter

from plusx.cli.shell import USE, Trained, about, app, open_trained, print_line


@app.command(
    group=USE,
    help_epilogue="Examples:\n  plusx listen runs/digits-spot three.wav\n"
    "  arecord -t raw -f S16_LE -c 1 -r 8000 | plusx listen runs/digits-spot -",
)
def listen(
    trained: Trained,
    source: Annotated[
        str,
        Parameter(
            name="FILE",
            allow_leading_hyphen=True,
            help="A sound file, or - for 16-bit little-endian mono PCM at the network's rate on "
            "standard input.",
        ),
    ] = "-",
    /,
    *,
    hops: Annotated[bool, Parameter(negative="", help="Print every window, not only events.")] = (
        False
    ),
    threshold: Annotated[float, about("Probability from which a keyword is an event.")] = 0.5,
    step: Annotated[float, about("Seconds between two windows.")] = 0.1,
) -> None:
    """Find keywords or words in sound; a JSON line for each: seconds, label, probability."""
    import json

    from plusx.run.listening import Listener

    listener = Listener(open_trained(trained, None), hops, threshold, step)
    stream = sys.stdin.buffer
    assert isinstance(stream, BufferedIOBase)
    rows = listener.pcm_rows(stream) if source == "-" else listener.file_rows(source)
    for row in rows:
        print(json.dumps(row, ensure_ascii=True, allow_nan=False), flush=True)
    for warning in listener.warnings:
        print_line(warning)
    print_line(
        f"{listener.seconds:.2f} s of sound in {listener.busy:.2f} s (real-time factor "
        f"{listener.real_time_factor:.3f}), latency {listener.latency:.3f} s",
    )
