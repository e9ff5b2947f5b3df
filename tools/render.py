"""Write the generated tables into README.md and docs/.

    python tools/render.py            write them
    python tools/render.py --check    list the outdated files; status 1 if there are any

A generated block is marked by two comments; do not edit between them:

    <!-- begin NAME -->
    <!-- end NAME -->

Measurements are read from results/, counts are computed from the specs. A block without a file
under results/ names the command that measures it.
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
import pretrained
import scaling
import streams
import studies
import twins

from plusx.errors import counted
from plusx.grammar.memory import PLANS, saved_bytes
from plusx.grammar.reversible import reversible_bytes
from plusx.grammar.spec import Net
from plusx.report.metrics import METRICS, OF_CLASSES
from plusx.zoo import External, find


ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"<!-- begin (?P<name>[\w-]+) -->\n(?:.*?\n)?<!-- end (?P=name) -->", re.DOTALL)


def demo(result: Mapping[str, Any]) -> str:
    """The comparison of `make demo`."""
    head = "| network | parameters | validation accuracy | F1 | train error | epochs to "
    lines = [f"{head}{_percent(result['threshold'])} |", "|---|---:|---:|---:|---:|---:|"]
    for row in result["rows"]:
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
    machine = result["machine"]
    seconds = f", {result['seconds']:.0f} s" if result.get("seconds") else ""
    caption = (
        f"After {result['length']} {result['finding']} Means and standard deviations over "
        f"{len(result['seeds'])} seeds; {result['count']} validation images; {machine['cores']} "
        f"cores ({machine['processor']}){seconds}."
    )
    return "\n".join([*lines, "", caption])


def recipes() -> str:
    """The measured results of the recipes that come with plusx."""
    lines = [
        "| recipe | network | reaches | seeds | samples | machine |",
        "|---|---|---|---:|---:|---|",
    ]
    for path in sorted((ROOT / "src" / "plusx" / "recipes").glob("*.toml")):
        result = ROOT / "results" / f"{path.stem}.json"
        if not result.is_file():
            continue
        result = json.loads(result.read_text(encoding="utf-8"))
        if result.get("kind") in ("study", "stream"):
            continue  # docs/studies.md and docs/stream.md have it
        machine = result["machine"]
        where = machine["processor" if machine["device"] == "cpu" else "device_name"]
        value, spread = result["value"], result["spread"]
        if not isinstance(value, Mapping):
            value, spread = {result["network"]: value}, {result["network"]: spread}
        metric = METRICS[result.get("metrics", OF_CLASSES)[0]]
        for network, mean in value.items():
            reached = metric.text(mean, spread[network], decimals=2)
            lines.append(
                f"| `{path.stem}` | `{network}` | {result['metric']} {reached} "
                f"| {len(result['seeds'])} | {result['count']:,} | {where} |"
            )
    return (
        "\n".join(lines) if len(lines) > 2 else "None is measured yet: `tools/measure.py RECIPE`."
    )


def faces(result: Mapping[str, Any]) -> str:
    """Error rates of faces over folds of people, and galleries."""

    def share(value: Mapping[str, float]) -> str:
        ends = " to ".join(f"{100 * value[end]:.1f}" for end in ("low", "high"))
        return f"{100 * value['value']:.1f} % ({ends})"

    titles = ("network", "equal error rate", "true accepts at 1 %", "galleries accept",
              "and of others", "worst gallery", "and of others")  # fmt: skip
    lines = [f"| {' | '.join(titles)} |", f"|---|{'---:|' * (len(titles) - 1)}"]
    for row in result["rows"]:
        gallery, worst = row["gallery"], row["gallery"]["worst"]
        cells = [
            f"`{row['network']}`",
            share(row["equal_error_rate"]),
            share(row["true_accept_rate"]),
            f"{100 * gallery['accepted_rate']:.1f} % of {gallery['genuine']:,}",
            f"{100 * gallery['false_accept_rate']:.1f} % of {gallery['strangers']:,}",
            f"{100 * worst['accepted_rate']:.0f} %",
            f"{100 * worst['false_accept_rate']:.0f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    gap = result["difference"]
    difference, low, high = (100 * gap[key] for key in ("difference", "low", "high"))
    caption = (
        f"{result['people']} people in {len(result['folds'])} folds, {len(result['seeds'])} seeds; "
        "intervals of 95 % by a bootstrap over people; "
        f"{result['rows'][0]['gallery']['galleries']} galleries of half of a fold each. Difference "
        "in equal error rate: "
        f"{difference:+.1f} points ({low:+.1f} to {high:+.1f}). {result['machine']['processor']}, "
        f"torch {result['versions']['torch']}, {result['date'][:10]}; `{result['command']}`."
    )
    return "\n".join([*lines, "", caption])


def published_weights(result: Mapping[str, Any]) -> str:
    """Accuracies of published trained weights."""
    titles = "file", "network", "correct of all", "accuracy", "correct of the exact", "accuracy"
    lines = [f"| {' | '.join(titles)} |", "|---|---|---:|---:|---:|---:|"]
    for row in result["rows"]:
        scores = [
            f"{part['right']:,} of {part['count']:,} | {100 * part['accuracy']:.2f} %"
            for part in (row, row["exact"])
        ]
        lines.append(f"| `{row['file']}` ({row['source']}) | `{row['model']}` | {scores[0]} "
                     f"| {scores[1]} |")  # fmt: skip
    return "\n".join([*lines, "", _reencoded(result)])


def _reencoded(result: Mapping[str, Any]) -> str:
    count = result["rows"][0]["exact"]["count"]
    return (
        f"The copy of CIFAR-10 that was used has {len(result['reencoded'])} test images only "
        "as JPEGs encoded again, with pixels that differ slightly from the official ones "
        f"(`results/published_weights.json` lists their indices); the other {count:,} are exact. "
        "With the official files the score of all images may differ by a few images, and that of "
        f"the {count:,} does not."
    )


def training_step(result: Mapping[str, Any]) -> str:
    """Ratios of the peers' time over ours."""
    lines = ["| network | library | threads | setting | ratio | 95 % interval | target |"]
    lines.append("|---|---|---:|---|---:|---|---:|")
    for row in result["rows"]:
        for setting, ratio in row["ratios"].items():
            target = row.get("targets", {}).get(setting)
            missed = ", missed" if setting in row.get("missed", ()) else ""
            lines.append(
                f"| `{row['model']}` | {row['peer']} | {row['threads']} | {setting} "
                f"| {ratio['value']:.3f} | {ratio['low']:.3f} to {ratio['high']:.3f} "
                f"| {'' if target is None else f'{target:.2f}{missed}'} |"
            )
    return "\n".join([*lines, "", _where(result)])


def loader(result: Mapping[str, Any]) -> str:
    """Images per second of data in memory, ours and the peers'."""
    head = "| threads | images per second | torchvision on | images per second | ratio "
    lines = [f"{head}| 95 % interval | at least |"]
    lines.append("|---:|---:|---|---:|---:|---|---:|")
    for row in result["rows"]:
        rate = row["images_per_second"]
        for kind, ratio in row["ratios"].items():
            target = row["targets"][kind]
            mark = "" if ratio["low"] >= target else " (missed)"
            lines.append(
                f"| {row['threads']} | {rate['ours']:,.0f} | {kind} | {rate[kind]:,.0f} "
                f"| {ratio['value']:.1f} | {ratio['low']:.1f} to {ratio['high']:.1f} "
                f"| {target:.0f}{mark} |"
            )
    return "\n".join([*lines, "", _where(result)])


def folders(result: Mapping[str, Any]) -> str:
    """Images per second of a folder of JPEGs, plain and packed."""
    rows = result["rows"]
    lines = ["| loader | " + " | ".join(_how(row) for row in rows) + " |"]
    lines.append("|---|" + "---:|" * len(rows))
    for name in rows[0]["images_per_second"]:
        rates = [f"{row['images_per_second'][name]['value']:,.0f}" for row in rows]
        lines.append(f"| {name} | {' | '.join(rates)} |")
    lines += ["", "| ratio | " + " | ".join(_how(row) for row in rows) + " |"]
    lines.append("|---|" + "---|" * len(rows))
    for name in rows[0]["ratios"]:
        ratios = [row["ratios"][name] for row in rows]
        cells = [f"{x['value']:.2f} ({x['low']:.2f} to {x['high']:.2f})" for x in ratios]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| target | at least | reached | |", "|---|---:|---|---|"]
    for target in rows[0]["targets"]:
        reached = target["reached"]
        digits = 0 if target["target"] > 100 else 2
        value, low, high = (f"{reached[x]:,.{digits}f}" for x in ("value", "low", "high"))
        verdict = "met" if target["met"] else "missed"
        lines.append(
            f"| {target['what']} | {target['target']:,g} | {value} ({low} to {high}) | {verdict} |"
        )
    cost = rows[0]["packing"]
    caption = (
        f"Packing {cost['images']:,} images took {cost['seconds']:.1f} s "
        f"({cost['images_per_second']:,.0f} a second) and {cost['bytes']:,} bytes, of "
        f"{cost['source_bytes']:,} of JPEGs. {result['recipe']['images']}."
    )
    return "\n".join([*lines, "", caption, "", _where(result)])


def _how(row: Mapping[str, Any]) -> str:
    return f"{row['workers']} workers" if row["workers"] else "no workers, 1 thread"


def fast(result: Mapping[str, Any]) -> str:
    """Accuracy at equal work: a row for each amount of work, a column for each recipe."""
    rows = result["rows"]
    names = list(dict.fromkeys(row["name"] for row in rows))
    lines = [f"| PFLOP | {' | '.join(names)} | fast, {rows[0]['views']} views | seeds |"]
    lines.append(f"|---:|{'---:|' * (len(names) + 2)}")
    for work in dict.fromkeys(row["work"] for row in rows):
        by_name = {row["name"]: row for row in rows if row["work"] == work}
        cells = [_spread(by_name[name]["accuracy"]) if name in by_name else "" for name in names]
        views = _spread(by_name["fast"]["accuracy_views"]) if "fast" in by_name else ""
        seeds = max(len(row["seeds"]) for row in by_name.values())
        lines.append(f"| {work:g} | {' | '.join(cells)} | {views} | {seeds} |")
    precision = result["recipe"]["precision"]
    return "\n".join([*lines, "", f"Computed in {precision}. {_where(result)}"])


def attacks(result: Mapping[str, Any]) -> str:
    """Accuracies under attack and times, ours and those of other libraries."""
    titles = ("network, attack, eps", "images", "clean", "ours", "other", "same samples", "seconds",
              "other", "ratio", "other library")  # fmt: skip
    lines = [f"| {' | '.join(titles)} |", f"|---|{'---:|' * (len(titles) - 2)}---|"]
    for row in result["rows"]:
        ratio, (low, high) = result["value"][row["name"]], result["spread"][row["name"]]
        lines.append(
            f"| {row['name']} | {row['count']:,} | {_percent(row['clean'])} "
            f"| {_percent(row['accuracy'])} | {_percent(row['accuracy_peer'])} "
            f"| {_percent(row['agreement'])} | {row['seconds']:.1f} | {row['seconds_peer']:.1f} "
            f"| {ratio:.1f} ({low:.1f} to {high:.1f}) | {row['peer']} |"
        )
    timed = result["rows"][0]["timed"]
    return "\n".join([*lines, "", f"Times are of the first {timed} images. {_where(result)}"])


def search(result: Mapping[str, Any]) -> str:
    """Default and best recipe of a search, with the confirming seeds."""
    default, best = (result["confirmation"][role] for role in ("default", "best"))
    gap = result["difference"]
    interval = f"{100 * gap['low']:+.1f} to {100 * gap['high']:+.1f}"
    searched = ", ".join(_percent(result[role]["value"]) for role in ("default", "best"))
    cells = [
        f"`{result['name']}`",
        _spread(default),
        _spread(best),
        f"{100 * gap['difference']:+.1f} ({interval})",
        searched,
    ]
    lines = [
        f"| {result['metric']} | default | best | difference, points | in the search |",
        "|---|---:|---:|---:|---:|",
        f"| {' | '.join(cells)} |",
    ]
    about = (
        f"{len(result['trials'])} trials on one thread, {result['seconds'] / 60:.0f} minutes; "
        f"confirmed with seeds {', '.join(map(str, result['seeds']))} on the same "
        f"{result['count']:,} validation images. {_where(result)}"
    )
    return "\n".join([*lines, "", about])


def startup(result: Mapping[str, Any]) -> str:
    """Start-up times of commands and imports."""
    lines = ["| command | median seconds | 95 % interval | limit |", "|---|---:|---|---:|"]
    lines += [
        f"| `{row['name']}` | {row['seconds']['value']:.3f} "
        f"| {row['seconds']['low']:.3f} to {row['seconds']['high']:.3f} | {row['limit'] or ''} |"
        for row in result["rows"]
    ]
    return "\n".join([*lines, "", _where(result)])


def processes(result: Mapping[str, Any]) -> str:
    """The time of two runs in two processes, against one run at a time in two threads."""
    lines = ["| | runs at a time | threads of a run | median seconds | 95 % interval |"]
    lines.append("|---|---:|---:|---:|---|")
    lines += [
        f"| {row['name']} | {row['jobs']} | {row['threads']} | {row['seconds']['value']:.1f} "
        f"| {row['seconds']['low']:.1f} to {row['seconds']['high']:.1f} |"
        for row in result["rows"]
    ]
    name = "two processes"
    value, (low, high) = result["value"][name], result["spread"][name]
    speed = f"{value:.2f} times as fast (95 % interval {low:.2f} to {high:.2f})"
    return "\n".join([*lines, "", f"Two processes are {speed}. {_where(result)}"])


def stochastic_depth(result: Mapping[str, Any]) -> str:
    """The time of a step with stochastic depth, against constant depth."""
    (row,) = result["rows"]
    lines = ["| images | threads | time / constant depth | 95 % interval | blocks computed |"]
    lines.append("|---:|---:|---:|---|---:|")
    lines.append(
        f"| {row['batch_size']} | {row['threads']} | {row['ratio']['value']:.3f} "
        f"| {row['ratio']['low']:.3f} to {row['ratio']['high']:.3f} "
        f"| {100 * row['counted_share']:.1f} % ({100 * row['expected_share']:.1f} % expected) |"
    )
    return "\n".join([*lines, "", _where(result)])


def memory(result: Mapping[str, Any]) -> str:
    """Bytes and times of plans and of peers."""
    head = "| network | method | threads | stored per image | bytes | time | 95 % interval |"
    lines = [f"{head} target |", "|---|---|---:|---:|---:|---:|---|---|"]
    for row in result["rows"]:
        exact = row["saved_share"] is not None
        share = row["saved_share" if exact else "live_share"]
        saved = row["bytes_per_image"]["saved" if exact else "live"]
        target = row["target"]
        target_text = "" if target is None else f"{target['bytes']:.2f} at {target['time']:.2f}"
        lines.append(
            f"| {row['model']} | {row['name']} | {row['threads']} | {saved / 1e6:.2f} MB "
            f"| {share:.3f}{'' if exact else ' (live)'} of {row['base']} "
            f"| {row['time']['value']:.3f} | {row['time']['low']:.3f} to {row['time']['high']:.3f} "
            f"| {target_text}{', missed' if row['missed'] else ''} |"
        )
    return "\n".join([*lines, "", _where(result)])


def memory_plans() -> str:
    """The bytes saved with each plan, by arithmetic."""
    names = ("resnet18", "resnet50", "resnet152", "densenet121", "convnext_tiny", "wrn28_10")
    names += ("resnet20", "resnet110", "preact_resnet110", "densenet_bc100_12")
    lines = ["| network | keep | recompute | segments |", "|---|---:|---:|---:|"]
    for name in names:
        net = find(name)
        assert isinstance(net, Net)
        saved = [saved_bytes(net, plan) for plan in PLANS]
        cells = [f"{saved[0] / 1e6:.2f} MB"]
        cells += [f"{count / 1e6:.2f} MB ({100 * count / saved[0]:.0f} %)" for count in saved[1:]]
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


# name: (the file under results/, the command that writes it, the function that formats it)
MEASURED: dict[str, tuple[str, str, Callable[[Mapping[str, Any]], str]]] = {
    "demo": ("digits.json", "python tools/measure.py digits", demo),
    "faces-folds": ("faces-folds.json", "python tools/faces.py", faces),
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
    "attacks": ("benchmark_attacks.json", "python benchmarks/attacks.py", attacks),
    "int8": ("benchmark_int8.json", "python benchmarks/int8.py", exporting.eight_bits),
    "sound": ("benchmark_sound.json", "python benchmarks/sound.py", exporting.sound),
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
    "verdicts": ("verdicts.json", "python benchmarks/verdicts.py", evidence.verdicts),
    "startup": ("benchmark_startup.json", "python benchmarks/startup.py", startup),
    "stochastic-depth": (
        "stochastic_depth.json",
        "python benchmarks/stochastic_depth.py",
        stochastic_depth,
    ),
    **{
        name: (f"{name}.json", f"python tools/measure.py {name}", streams.table)
        for name in ("digits-stream", "fashion-stream")
    },
    **{
        name: (f"{name}.json", f"python tools/pretraining.py {name}", pretrained.table)
        for name in pretrained.RECIPES
    },
    "processes": (
        "benchmark_processes.json",
        "python benchmarks/processes.py",
        processes,
    ),
}


def block_text(name: str) -> str:
    """The Markdown of the block with that name. Raises ValueError if there is none."""
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
    if name.startswith("search-"):
        recipe = name.removeprefix("search-")
        path = ROOT / "results" / f"{recipe}.json"
        if not path.is_file():
            return f"Not measured yet: `python tools/measure.py {recipe}`."
        return search(json.loads(path.read_text(encoding="utf-8")))
    if name not in MEASURED:
        groups = (f"networks-{group}" for group in networks.GROUPS)
        known = ", ".join([*MEASURED, "recipes", *groups])
        raise ValueError(f"there is no block {name!r}; the blocks are {known}")
    file, command, draw = MEASURED[name]
    path = ROOT / "results" / file
    if not path.is_file():
        return f"Not measured yet: `{command}`, kept as `results/{file}`."
    return draw(json.loads(path.read_text(encoding="utf-8")))


def with_blocks(text: str) -> str:
    """A page with every generated block replaced."""

    def replaced(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- begin {name} -->\n{block_text(name)}\n<!-- end {name} -->"

    return BLOCK.sub(replaced, text)


def main(check: bool) -> int:
    stale = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text(encoding="utf-8")
        if (new := with_blocks(text)) != text:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_text(new, encoding="utf-8")
    for path in stale:
        print(f"{path}: {'is outdated; run python tools/render.py' if check else 'written'}")
    return int(check and bool(stale))


def _where(result: Mapping[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    note = f"; {machine['note']}" if machine.get("note") else ""
    return (
        f"{machine['processor']}, {counted(machine['cores'], 'core')}, torch {versions['torch']}, "
        f"{result['date'][:10]}{note}."
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
