"""The command that packs a folder of images."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from plusx.cli.shell import Json, OnUnreadable, about, app, print_json, tell


@app.command(
    help_epilogue="Examples:\n  plusx pack photos --to photos.plusx\n"
    "  plusx pack photos --to small.plusx --size 160\n"
    "  plusx train images data.kind=packed data.path=photos.plusx"
)
def pack(
    folder: Annotated[str, Parameter(name="FOLDER", help="A folder of class folders.")],
    /,
    *,
    to: Annotated[Path, about("The file to write; one of that name is replaced.")],
    size: Annotated[int, about("Pixels a side that the network will see.")] = 224,
    side: Annotated[
        int | None,
        about("Of the shorter side that is kept. Default: what evaluation at --size scales to."),
    ] = None,
    on_unreadable: OnUnreadable = "error",
    threads: Annotated[int, about("That decode; 0 is one a core.")] = 0,
    as_json: Json = False,
) -> None:
    """Scale and keep the images of a folder in one file that is read without decoding."""
    import logging

    from plusx.data.readers.packing import pack as pack_folder

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tell(record.getMessage())

    log, handler = logging.getLogger("plusx.data"), Told(logging.INFO)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        result = pack_folder(
            folder, to, size=size, side=side, on_unreadable=on_unreadable, threads=threads or None
        )
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    for notice in result["notices"]:
        tell(notice)
    if as_json:
        print_json(result)
        return
    print(
        f"{result['file']}: {result['images']:,} images of {result['classes']:,} classes, "
        f"{result['side']} pixels on the shorter side"
    )
    print(
        f"  {result['bytes']:,} bytes from {result['source_bytes']:,}; checked in "
        f"{result['checking_seconds']:.1f} s, packed in {result['seconds']:.1f} s "
        f"({result['images_per_second']:,.0f} images a second)"
    )
