"""The command listen: keywords, words and commands in a file or a stream of sound."""

import sys
from io import BufferedIOBase
from typing import Annotated

from cyclopts import Parameter

from plusx.cli.shell import (
    USE,
    GrammarOption,
    Trained,
    about,
    app,
    open_trained,
    print_line,
)
from plusx.errors import UserError


@app.command(
    group=USE,
    help_epilogue="Examples:\n  plusx listen runs/digits-spot three.wav\n"
    "  arecord -t raw -f S16_LE -c 1 -r 8000 | plusx listen runs/digits-spot -\n"
    "  plusx listen runs/voice-commands evening.wav --grammar home.toml",
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
    threshold: Annotated[
        float | None,
        about(
            "Probability from which a keyword is an event (default: 0.5), or likelihood ratio from "
            "which a phrase of a grammar is accepted (default: that of the recipe)."
        ),
    ] = None,
    grammar: GrammarOption = None,
    step: Annotated[float, about("Seconds between two windows.")] = 0.1,
) -> None:
    """Find keywords, words or commands in sound; a JSON line for each: seconds, label,
    probability."""
    import json

    from plusx.run.listening import Listener
    from plusx.run.spoken_commands import within_grammar
    from plusx.run.streaming import THRESHOLD

    run = open_trained(trained, None)
    limit = threshold
    if not run.classifies:  # words and commands
        run, limit = within_grammar(run, grammar, threshold), None
    elif grammar is not None:
        raise UserError(f"{trained}: a grammar is for networks that transcribe speech")
    listener = Listener(run, hops, THRESHOLD if limit is None else limit, step)
    rows = listener.pcm_rows(_standard_input()) if source == "-" else listener.file_rows(source)
    for row in rows:
        print(json.dumps(row, ensure_ascii=True, allow_nan=False), flush=True)
    for warning in listener.warnings:
        print_line(warning)
    print_line(
        f"{listener.seconds:.2f} s of sound in {listener.busy:.2f} s (real-time factor "
        f"{listener.real_time_factor:.3f}), latency {listener.latency:.3f} s",
    )


def _standard_input() -> BufferedIOBase:
    if sys.stdin is None:
        raise UserError("standard input is closed: give a file, or a stream of sound")
    stream = sys.stdin.buffer
    assert isinstance(stream, BufferedIOBase)
    return stream
