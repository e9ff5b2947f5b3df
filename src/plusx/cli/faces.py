"""The commands that know people again."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from plusx.cli.shell import Device, Json, OnUnreadable, about, app, opened, print_json, tell
from plusx.errors import UserError


@app.command(
    help_epilogue="Examples:\n  plusx enroll runs/faces-verify staff --to gallery\n"
    "  plusx enroll runs/faces-verify staff --to gallery --far .001 --impostors visitors"
)
def enroll(
    trained: Annotated[str, Parameter(name="RUN", help="A run of embeddings: its folder.")],
    folder: Annotated[str, Parameter(name="FOLDER", help="One folder a person, aligned crops.")],
    /,
    *,
    to: Annotated[Path, about("The gallery: a new folder.")],
    far: Annotated[
        float | None,
        about(
            "False-accept rate: the fraction of impostors that may be accepted. Default: that of "
            "the recipe."
        ),
    ] = None,
    impostors: Annotated[
        Path | None,
        about("A folder of people to be refused. Default: those of the validation split."),
    ] = None,
    on_unreadable: OnUnreadable = "error",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Make a gallery of people, with a threshold that refuses strangers."""
    from plusx.run.enrolling import enroll as enroll_people

    result = enroll_people(
        opened(trained, None),
        folder,
        to,
        far=far,
        impostors=impostors,
        on_unreadable=on_unreadable,
        device=device,
    )
    for notice in result["notices"]:
        tell(notice)
    if as_json:
        print_json(result)
        return
    print(
        f"{result['gallery']}: {result['people']:,} people by {result['pictures']:,} pictures\n"
        f"  accepted from a score of {result['threshold']:.4f}: {result['false_accepts']:,} of "
        f"{result['trials']:,} pictures of impostors are ({result['false_accept_rate']:.2%} may be)"
    )
    if result["true_accept_rate"] is not None:
        print(f"  enrolled pictures told by the person's others: {result['true_accept_rate']:.1%}")


@app.command(
    help_epilogue="Examples:\n  plusx verify gallery door.png\n"
    "  plusx verify gallery door.png --person anna --json"
)
def verify(
    gallery: Annotated[str, Parameter(name="GALLERY", help="What `plusx enroll` wrote.")],
    /,
    *paths: Annotated[str, about("Images, and folders of images: aligned crops of faces.")],
    person: Annotated[str | None, about("Whether it is this one, instead of who it is.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Say who is on images, or that it is nobody who is enrolled."""
    if not paths:
        raise UserError("verify: name images or folders of images")
    from plusx.run.enrolling import open_gallery
    from plusx.run.enrolling import verify as verify_images

    result = verify_images(open_gallery(gallery), paths, person=person, device=device)
    for each in result["failed"]:
        tell(f"{each['path']}: {each['reason']}")
    if as_json:
        print_json(result)
        return
    width = max(len(row["path"]) for row in result["answers"])
    for row in result["answers"]:
        if row["person"] is not None:
            told = row["person"]
        else:
            told = "nobody who is enrolled" if person is None else f"not {person}"
        print(f"{row['path']:{width}}  {row['score']:7.4f}  {told}")
