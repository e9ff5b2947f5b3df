"""Networks as text and as data for programs: counts and sentences, by arithmetic, without torch."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from plusx.errors import UserError, did_you_mean
from plusx.grammar.arithmetic import each_dimension, measure
from plusx.grammar.heads import head_to_dict
from plusx.grammar.model import Model, WithHead, costs
from plusx.grammar.sizes import parse_size
from plusx.grammar.spec import Block, Net
from plusx.grammar.toml import from_dict, read_net, to_dict
from plusx.grammar.validate import validate
from plusx.overrides import split_override
from plusx.zoo import HEADED, PAPERS, ZOO, Entry, HeadedEntry, find_model, names
from plusx.zoo.memory_report import memory_report


def list_networks(pattern: str = "*") -> list[dict[str, Any]]:
    """Return a row for every network of the zoo whose name matches the shell pattern. Raises
    UserError if none does."""
    matching = names(pattern, headed=True)
    if not matching:
        hint = did_you_mean(pattern.strip("*?"), [*ZOO, *HEADED], 3, cutoff=0.5)
        raise UserError(f"no network matches {pattern!r}{hint}")
    entries: dict[str, Entry | HeadedEntry] = {**ZOO, **HEADED}
    return [
        _counts(name, entries[name].net) | {"source": entries[name].source} for name in matching
    ]


def describe_network(model: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return counts, sentences and source of a network, with overrides of its fields.

    `model` is a name of the zoo or the path of a TOML spec. Raises UserError if it, or an override,
    is invalid.
    """
    net, source = _network(model)
    if overrides:
        net = _changed(model, net, overrides)
    described = _counts(model, net) | {"source": source}
    if isinstance(net, WithHead):
        described |= {"head": head_to_dict(net.head)}
        net = net.backbone
    if not isinstance(net, Net):
        return described | {"stages": []}
    shapes = measure(net).stages
    return described | {
        "stem": net.stem,
        "stages": [
            {
                "name": shape.name,
                "blocks": shape.blocks,
                "channels": shape.channels,
                "size": list(shape.size),
                "stride": list(shape.stride),
                "parameters": shape.parameters,
                "multiply_adds": shape.multiply_adds,
                "sentences": _sentences(stage.block),
            }
            | ({"enter": stage.enter} if stage.enter else {})
            | ({"first": _sentences(stage.first)} if stage.first else {})
            for shape, stage in zip(shapes, net.stages, strict=True)
        ],
        "tail": net.tail,
        "norm": net.norm,
        "act": net.act,
        "drop_path": net.drop_path,
    }


def describe_memory(
    model: str, overrides: Sequence[str], memory: str, batch: int
) -> dict[str, Any]:
    """Return the memory plans that fit in a memory such as "4GB", with this batch size."""
    net, _ = _network(model)
    if overrides:
        net = _changed(model, net, overrides)
    if isinstance(net, WithHead):
        base = HEADED[model].base
        raise UserError(
            f"{model} has a head, whose memory is not counted; describe its backbone {base}"
        )
    return memory_report(model, net, parse_size(memory), batch)


def description(described: dict[str, Any]) -> str:
    """Return the result of `describe_network` as text for a terminal."""
    shape = " x ".join(map(str, described["input"]))
    lines = [
        f"{described['name']}  ({described['source']})",
        f"  input          {shape}",
        f"  classes        {described['classes']:,}",
        f"  parameters     {described['parameters']:,}",
        f"  MACs           {described['multiply_adds']:,}",
        f"  depth          {_depth_text(described)}",
    ]
    if "head" in described:
        lines.append(f"  head           {described['head']['kind']}, depth is the backbone's")
    if not described["stages"]:
        return "\n".join([*lines, "  an external module, built as it is published"])
    layers = f"norm {described['norm']}, act {described['act']}"
    lines += [f"  {layers}", "", f"  stem    {described['stem']}"]
    for stage in described["stages"]:
        size = " x ".join(map(str, stage["size"]))
        lines.append(
            f"  {stage['name']:7} {stage['blocks']} x {stage['channels']} channels at {size}, "
            f"{stage['parameters']:,} parameters, {stage['multiply_adds']:,} MACs"
        )
        if "enter" in stage:
            lines.append(f"          enter     {stage['enter']}")
        for label, blocks in (("first", stage.get("first", [])), ("", stage["sentences"])):
            for block in blocks:
                for name, sentence in block.items():
                    words = f"{label} {name}".strip()
                    lines.append(f"          {words:9} {sentence}")
    return "\n".join([*lines, f"  tail    {described['tail']}"])


def _network(model: str) -> tuple[Model, str]:
    path = Path(model)
    if path.suffix == ".toml":
        return read_net(path), model
    if (path / "recipe.toml").is_file():
        raise UserError(
            f"{model} is a run: `plusx report {model}` shows it, and `plusx describe` the network "
            f"that its recipe names as base"
        )
    net = find_model(model)
    source = (HEADED[model] if model in HEADED else ZOO[model]).source
    paper = next((title for key, title in PAPERS.items() if source.startswith(key)), None)
    return net, f"{source}: {paper}" if paper else source


def _changed(model: str, net: Model, overrides: Sequence[str]) -> Net:
    if not isinstance(net, Net):
        what = "has a head" if isinstance(net, WithHead) else "is an external module without a spec"
        raise UserError(f"{model} {what}: its fields cannot be changed")
    changeable = [field.name for field in fields(Net) if field.name != "stages"]
    spec = to_dict(net)
    for override in overrides:
        path, value = split_override(override)
        name = ".".join(path)
        if name not in changeable:
            raise UserError(
                f"{override!r}: a network has no field {name!r}{did_you_mean(name, changeable)} "
                f"(fields: {', '.join(changeable)})"
            )
        spec[name] = value
    changed = from_dict(spec)
    validate(changed)
    return changed


def _counts(name: str, net: Model) -> dict[str, Any]:
    backbone = net.backbone if isinstance(net, WithHead) else net
    backbone_counts = costs(backbone)
    counts = HEADED[name] if isinstance(net, WithHead) else backbone_counts
    size = each_dimension(backbone.size, backbone.ndim)
    return {
        "name": name,
        "parameters": counts.parameters,
        "multiply_adds": counts.multiply_adds,
        # as the paper counts, if that differs
        "depth": (name in ZOO and ZOO[name].depth) or backbone_counts.depth,
        "layers": backbone_counts.depth,
        "input": list(size) if backbone.takes_tokens else [backbone.in_channels, *size],
        "classes": net.num_classes,
    }


def _depth_text(described: dict[str, Any]) -> str:
    depth, layers = described["depth"], described["layers"]
    text = f"{layers} layers with weights"
    return text if depth == layers else f"{depth} as the paper counts; {text}"


def _sentences(block: Block | tuple[Block, ...]) -> list[dict[str, str]]:
    blocks = block if isinstance(block, tuple) else (block,)
    return [
        {"body": b.body}
        | ({"shortcut": b.shortcut} if "+" in b.body else {})
        | ({"identity": b.identity} if b.identity else {})
        | ({"gate": b.gate} if "~" in b.body else {})
        for b in blocks
    ]
