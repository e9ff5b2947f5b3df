"""Reports: one self-contained HTML file for a run, a comparison or a study."""

from pathlib import Path
from typing import Any

from plusx import store
from plusx.errors import UserError


__all__ = ["write_report"]

REPORT = "report.html"
EXAMPLES = "examples"  # in a run's folder: predictions for a few validation images


def write_report(folder: str | Path) -> Path:
    """Write report.html into the folder of a finished run, comparison or study; return its path.

    Raises UserError if the folder is none of these, or its files are incomplete.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of a run, a comparison or a study")
    if not (folder / "result.json").is_file():
        unfinished = (folder / "recipe.toml").is_file()
        raise UserError(
            f"{folder} has no result.json: "
            + ("it is not finished yet" if unfinished else "it is not a run, comparison or study")
        )
    result = store.read_json_part(folder / "result.json")
    try:
        page = _page(folder, result)
    except (UserError, OSError):
        raise
    except Exception as error:  # values of other types fail anywhere in the page
        raise UserError(
            f"{folder / 'result.json'} is not the result of a run, a comparison or a study "
            f"({type(error).__name__}: {error}): restore the file, or run the command that wrote "
            "it again with another --out"
        ) from error
    store.write_text(folder / REPORT, page)
    return folder / REPORT


def _page(folder: Path, result: dict[str, Any]) -> str:
    # imported here since matplotlib takes half a second
    if result.get("kind") in ("compare", "study"):
        from plusx.report.result import result_page

        return result_page(result)
    from plusx.report.history import read_history
    from plusx.report.metrics import OF_CLASSES
    from plusx.report.predictions import read_examples
    from plusx.report.run import run_page

    uses = folder / "test_uses.jsonl"
    return run_page(
        result,
        read_history(folder / "log.jsonl", result.get("metrics", OF_CLASSES)[0]),
        classes=_table(folder / "data.json")["classes"],
        recipe=store.read_part(folder / "recipe.toml").decode("utf-8", "replace"),
        environment=_table(folder / "environment.json"),
        test_uses=store.read_bytes(uses).count(b"\n") if uses.is_file() else 0,
        examples=read_examples(folder / EXAMPLES),
    )


def _table(file: Path) -> dict[str, Any]:
    """Read a JSON object of a run's folder. Raises UserError if it is missing or invalid."""
    values = store.read_json_part(file)
    if not isinstance(values, dict) or not isinstance(values.get("classes", []), list):
        raise UserError(f"{file} is not what plusx wrote: restore the file")
    return values
