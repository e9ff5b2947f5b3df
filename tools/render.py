"""Put what is measured and what is counted into README.md and docs/.

    python tools/render.py            write it
    python tools/render.py --check    say which files are not as they should be; status 1 if any

A marked place is two comments with nothing typed between them:

    <!-- begin NAME -->
    <!-- end NAME -->

Measured figures come from results/, counts from the specs. A place whose file under results/ is
not there yet says so, with the command that makes it.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import detecting
import evidence
import exporting
import networks
import scaling
import studies
import twins

from plusx.grammar.memory import PLANS, saved_bytes
from plusx.grammar.reversible import reversible_bytes
from plusx.grammar.spec import Net
from plusx.zoo import External, find


ROOT = Path(__file__).parents[1]
PLACE = re.compile(r"<!-- begin (?P<name>[\w-]+) -->\n(?:.*?\n)?<!-- end (?P=name) -->", re.DOTALL)


def demo(found: Mapping[str, Any]) -> str:
    """The comparison of `make demo`."""
    head = "| network | parameters | validation accuracy | F1 | train error | epochs to "
    lines = [f"{head}{_percent(found['threshold'])} |", "|---|---:|---:|---:|---:|---:|"]
    for row in found["rows"]:
        reached = row["epochs_to_threshold"]
        epochs = "not reached"
        if reached["reached"]:
            epochs = f"{reached['mean']:.1f}".removesuffix(".0")
            if reached["reached"] < len(row["seeds"]):
                epochs += f" ({reached['reached']} of {len(row['seeds'])} seeds)"
        lines.append(
            f"| `{row['name']}` | {row['parameters']:,} | {_spread(row['accuracy'])} "
            f"| {_spread(row['f1'])} | {_spread(row['train_error'])} | {epochs} |"
        )
    machine = found["machine"]
    seconds = f", {found['seconds']:.0f} s" if found.get("seconds") else ""
    said = (
        f"{found['finding']} Means and standard deviations over {len(found['seeds'])} seeds of "
        f"{found['length']} each; {found['count']} validation images; {machine['cores']} cores "
        f"({machine['processor']}){seconds}."
    )
    return "\n".join([*lines, "", said])


def recipes() -> str:
    """What the recipes that come with plusx were measured to reach."""
    lines = [
        "| recipe | network | reaches | seeds | images | machine |",
        "|---|---|---|---:|---:|---|",
    ]
    for path in sorted((ROOT / "src" / "plusx" / "recipes").glob("*.toml")):
        result = ROOT / "results" / f"{path.stem}.json"
        if not result.is_file():
            continue
        found = json.loads(result.read_text(encoding="utf-8"))
        if found.get("kind") == "study":
            continue  # docs/studies.md has it
        machine = found["machine"]
        where = machine["processor" if machine["device"] == "cpu" else "device_name"]
        value, spread = found["value"], found["spread"]
        if not isinstance(value, Mapping):
            value, spread = {found["network"]: value}, {found["network"]: spread}
        for network, share in value.items():
            reached = _spread({"mean": share, "std": spread[network]}, digits=2)
            lines.append(
                f"| `{path.stem}` | `{network}` | {found['metric']} {reached} "
                f"| {len(found['seeds'])} | {found['count']:,} | {where} |"
            )
    return (
        "\n".join(lines) if len(lines) > 2 else "None is measured yet: `tools/measure.py RECIPE`."
    )


def published_weights(found: Mapping[str, Any]) -> str:
    """Accuracies of other people's trained weights."""
    lines = ["| file | network | correct test images | accuracy |", "|---|---|---:|---:|"]
    lines += [
        f"| `{row['file']}` ({row['source']}) | `{row['model']}` "
        f"| {row['right']:,} of {row['count']:,} | {100 * row['accuracy']:.2f} % |"
        for row in found["rows"]
    ]
    return "\n".join(lines)


def training_step(found: Mapping[str, Any]) -> str:
    """Ratios of the peers' time over ours."""
    lines = ["| network | library | threads | setting | ratio | 95 % interval | target |"]
    lines.append("|---|---|---:|---|---:|---|---:|")
    for row in found["rows"]:
        for what, each in row["ratios"].items():
            asked = row.get("targets", {}).get(what)
            missed = ", missed" if what in row.get("missed", ()) else ""
            lines.append(
                f"| `{row['model']}` | {row['peer']} | {row['threads']} | {what} "
                f"| {each['value']:.3f} | {each['low']:.3f} to {each['high']:.3f} "
                f"| {'' if asked is None else f'{asked:.2f}{missed}'} |"
            )
    return "\n".join([*lines, "", _where(found)])


def loader(found: Mapping[str, Any]) -> str:
    """Images a second of sets in memory, ours and the peers'."""
    head = "| threads | images per second | torchvision on | images per second | ratio "
    lines = [f"{head}| 95 % interval | at least |"]
    lines.append("|---:|---:|---|---:|---:|---|---:|")
    for row in found["rows"]:
        rate = row["images_per_second"]
        for kind, each in row["ratios"].items():
            target = row["targets"][kind]
            mark = "" if each["low"] >= target else " (missed)"
            lines.append(
                f"| {row['threads']} | {rate['ours']:,.0f} | {kind} | {rate[kind]:,.0f} "
                f"| {each['value']:.1f} | {each['low']:.1f} to {each['high']:.1f} "
                f"| {target:.0f}{mark} |"
            )
    return "\n".join([*lines, "", _where(found)])


def folders(found: Mapping[str, Any]) -> str:
    """Images a second of a folder of JPEGs and of the same packed."""
    rows = found["rows"]
    lines = ["| loader | " + " | ".join(_how(row) for row in rows) + " |"]
    lines.append("|---|" + "---:|" * len(rows))
    for name in rows[0]["images_per_second"]:
        rates = [f"{row['images_per_second'][name]['value']:,.0f}" for row in rows]
        lines.append(f"| {name} | {' | '.join(rates)} |")
    lines += ["", "| ratio | " + " | ".join(_how(row) for row in rows) + " |"]
    lines.append("|---|" + "---|" * len(rows))
    for name in rows[0]["ratios"]:
        said = [row["ratios"][name] for row in rows]
        cells = [f"{x['value']:.2f} ({x['low']:.2f} to {x['high']:.2f})" for x in said]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| target | at least | reached | |", "|---|---:|---|---|"]
    for each in rows[0]["targets"]:
        reached = each["reached"]
        digits = 0 if each["target"] > 100 else 2
        value, low, high = (f"{reached[x]:,.{digits}f}" for x in ("value", "low", "high"))
        verdict = "met" if each["met"] else "missed"
        lines.append(
            f"| {each['what']} | {each['target']:,g} | {value} ({low} to {high}) | {verdict} |"
        )
    cost = rows[0]["packing"]
    said = (
        f"Packing {cost['images']:,} images took {cost['seconds']:.1f} s "
        f"({cost['images_per_second']:,.0f} a second) and {cost['bytes']:,} bytes, of "
        f"{cost['source_bytes']:,} of JPEGs. {found['recipe']['images']}."
    )
    return "\n".join([*lines, "", said, "", _where(found)])


def _how(row: Mapping[str, Any]) -> str:
    return f"{row['workers']} workers" if row["workers"] else "no workers, 1 thread"


def fast(found: Mapping[str, Any]) -> str:
    """Accuracy at equal work: a row for each work, a column for each recipe."""
    rows = found["rows"]
    names = list(dict.fromkeys(row["name"] for row in rows))
    lines = [f"| PFLOP | {' | '.join(names)} | fast, {rows[0]['views']} views | seeds |"]
    lines.append(f"|---:|{'---:|' * (len(names) + 2)}")
    for work in dict.fromkeys(row["work"] for row in rows):
        here = {row["name"]: row for row in rows if row["work"] == work}
        cells = [_spread(here[name]["accuracy"]) if name in here else "" for name in names]
        views = _spread(here["fast"]["accuracy_views"]) if "fast" in here else ""
        seeds = max(len(row["seeds"]) for row in here.values())
        lines.append(f"| {work:g} | {' | '.join(cells)} | {views} | {seeds} |")
    precision = found["recipe"]["precision"]
    return "\n".join([*lines, "", f"Computed in {precision}. {_where(found)}"])


def startup(found: Mapping[str, Any]) -> str:
    """Seconds until an answer."""
    lines = ["| command | median seconds | 95 % interval | limit |", "|---|---:|---|---:|"]
    lines += [
        f"| `{row['name']}` | {row['seconds']['value']:.3f} "
        f"| {row['seconds']['low']:.3f} to {row['seconds']['high']:.3f} | {row['limit'] or ''} |"
        for row in found["rows"]
    ]
    return "\n".join([*lines, "", _where(found)])


def processes(found: Mapping[str, Any]) -> str:
    """How much faster two processes are than two threads."""
    low, high = found["spread"]
    said = f"{found['value']:.2f} times as fast (interval of 95 %: {low:.2f} to {high:.2f})"
    return f"Two processes of one thread are {said}. {_where(found)}"


def stochastic_depth(found: Mapping[str, Any]) -> str:
    """The time of a step with stochastic depth, against constant depth."""
    (row,) = found["rows"]
    lines = ["| images | threads | time / constant depth | 95 % interval | blocks computed |"]
    lines.append("|---:|---:|---:|---|---:|")
    lines.append(
        f"| {row['batch_size']} | {row['threads']} | {row['ratio']['value']:.3f} "
        f"| {row['ratio']['low']:.3f} to {row['ratio']['high']:.3f} "
        f"| {100 * row['counted_share']:.1f} % ({100 * row['expected_share']:.1f} % expected) |"
    )
    return "\n".join([*lines, "", _where(found)])


def memory(found: Mapping[str, Any]) -> str:
    """Bytes and times of plans and of peers."""
    head = "| network | method | threads | stored per image | bytes | time | 95 % interval |"
    lines = [f"{head} target |", "|---|---|---:|---:|---:|---:|---|---|"]
    for row in found["rows"]:
        exact = row["saved_share"] is not None
        share = row["saved_share" if exact else "live_share"]
        held = row["bytes_per_image"]["saved" if exact else "live"]
        target = row["target"]
        asked = "" if target is None else f"{target['bytes']:.2f} at {target['time']:.2f}"
        lines.append(
            f"| {row['model']} | {row['name']} | {row['threads']} | {held / 1e6:.2f} MB "
            f"| {share:.3f}{'' if exact else ' (live)'} of {row['base']} "
            f"| {row['time']['value']:.3f} | {row['time']['low']:.3f} to {row['time']['high']:.3f} "
            f"| {asked}{', missed' if row['missed'] else ''} |"
        )
    return "\n".join([*lines, "", _where(found)])


def memory_plans() -> str:
    """What plans hold of some networks, by arithmetic."""
    names = ("resnet18", "resnet50", "resnet152", "densenet121", "convnext_tiny", "wrn28_10")
    names += ("resnet20", "resnet110", "preact_resnet110", "densenet_bc100_12")
    lines = ["| network | keep | recompute | segments |", "|---|---:|---:|---:|"]
    for name in names:
        net = find(name)
        assert isinstance(net, Net)
        held = [saved_bytes(net, plan) for plan in PLANS]
        cells = [f"{held[0] / 1e6:.2f} MB"]
        cells += [f"{each / 1e6:.2f} MB ({100 * each / held[0]:.0f} %)" for each in held[1:]]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    for name in ("revnet38", "revnet110"):
        plain = find(name)
        assert isinstance(plain, External)
        assert plain.reversible is not None
        stored, ours = (reversible_bytes(plain.reversible, reverses=way) for way in (False, True))
        share = f"{100 * ours / stored:.0f} %"
        lines.append(
            f"| `{name}` | {stored / 1e6:.2f} MB | reversible: {ours / 1e6:.2f} MB ({share}) | |"
        )
    return "\n".join(lines)


# name: (the file under results/, what makes it, how it is drawn)
MEASURED: dict[str, tuple[str, str, Callable[[Mapping[str, Any]], str]]] = {
    "demo": ("digits.json", "python tools/measure.py digits", demo),
    "published-weights": (
        "published_weights.json",
        "python benchmarks/published_weights.py",
        published_weights,
    ),
    "training-step": (
        "benchmark_training_step.json",
        "python benchmarks/training_step.py",
        training_step,
    ),
    "loader": (
        "benchmark_loader.json",
        "python benchmarks/loader.py",
        loader,
    ),
    "folders": ("benchmark_folders.json", "python benchmarks/folders.py", folders),
    "inference": ("benchmark_inference.json", "python benchmarks/inference.py", exporting.latency),
    "detectors": (
        "benchmark_detectors.json",
        "python benchmarks/detectors.py",
        detecting.detectors,
    ),
    "int8": ("benchmark_int8.json", "python benchmarks/int8.py", exporting.eight_bits),
    "fast": ("benchmark_fast.json", "python benchmarks/fast.py", fast),
    "fast-full": (
        "benchmark_fast_full.json",
        (
            "python benchmarks/fast.py --work 0.2895 --networks fast --seeds 0 "
            "--cells runs/fast-full --out results/benchmark_fast_full.json"
        ),
        fast,
    ),
    **{
        f"scale-{name}": ("benchmark_scale.json", "python benchmarks/scale.py", draw)
        for name, draw in (
            ("bytes", scaling.moved),
            ("speed", scaling.speed),
            ("imagenet", scaling.imagenet),
        )
    },
    "memory": ("benchmark_memory.json", "python benchmarks/memory.py", memory),
    "startup": ("benchmark_startup.json", "python benchmarks/startup.py", startup),
    "stochastic-depth": (
        "stochastic_depth.json",
        "python benchmarks/stochastic_depth.py",
        stochastic_depth,
    ),
    "processes": (
        "processes.json",
        "python benchmarks/processes.py --out results/processes.json",
        processes,
    ),
}


def drawn(name: str) -> str:
    """What stands at the place of that name."""
    if name.startswith("evidence-") and name.removeprefix("evidence-") in evidence.TABLES:
        return evidence.TABLES[name.removeprefix("evidence-")]()
    if name.startswith("networks-"):
        return networks.table(name.removeprefix("networks-"))
    if name == "recipes":
        return recipes()
    if name.startswith("twins-") and name.removeprefix("twins-") in twins.GROUPS:
        return twins.table(name.removeprefix("twins-"))
    if name == "memory-plans":
        return memory_plans()
    if name.startswith("study-"):
        recipe = name.removeprefix("study-")
        path = ROOT / "results" / f"{recipe}.json"
        if not path.is_file():
            return f"Not measured yet: `python tools/measure.py {recipe}`."
        return studies.study(json.loads(path.read_text(encoding="utf-8")))
    if name not in MEASURED:
        groups = (f"networks-{group}" for group in networks.GROUPS)
        known = ", ".join([*MEASURED, "recipes", *groups])
        raise ValueError(f"there is no place {name!r} to fill; there are {known}")
    file, command, draw = MEASURED[name]
    path = ROOT / "results" / file
    if not path.is_file():
        return f"Not measured yet: `{command}`, kept as `results/{file}`."
    return draw(json.loads(path.read_text(encoding="utf-8")))


def filled(text: str) -> str:
    """A page with every marked place filled."""
    return PLACE.sub(
        lambda place: (
            f"<!-- begin {place['name']} -->\n{drawn(place['name'])}\n<!-- end {place['name']} -->"
        ),
        text,
    )


def main(check: bool) -> int:
    stale = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_text(new, encoding="utf-8")
    for path in stale:
        print(f"{path}: {'is not as python tools/render.py makes it' if check else 'written'}")
    return int(check and bool(stale))


def _where(found: Mapping[str, Any]) -> str:
    machine, versions = found["machine"], found["versions"]
    note = f"; {machine['note']}" if machine.get("note") else ""
    return (
        f"{machine['processor']}, {machine['cores']} cores, torch {versions['torch']}, "
        f"{found['date'][:10]}{note}."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def _spread(value: Mapping[str, Any], digits: int = 1) -> str:
    spread = "" if value["std"] is None else f" ± {100 * value['std']:.{digits}f}"
    return f"{100 * value['mean']:.{digits}f}{spread} %"


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit("usage: python tools/render.py [--check]")
    sys.exit(main("--check" in sys.argv))
