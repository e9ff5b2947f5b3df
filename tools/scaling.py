"""The tables of docs/scale.md, from results/benchmark_scale.json."""

from collections.abc import Mapping
from typing import Any


def speed(result: Mapping[str, Any]) -> str:
    """Two processes with one thread each against one with two threads."""
    lines = ["| engine | network | batch | time of one process / ours | 95 % interval |"]
    lines.append("|---|---|---:|---:|---|")
    for row in _rows(result, "speed"):
        lines += [
            f"| {name} | `{row['model']}` | {row['batch_size']} | {each['value']:.2f} "
            f"| {each['low']:.2f} to {each['high']:.2f} |"
            for name, each in row["ratios"].items()
        ]
    return "\n".join([*lines, "", where(result)])


def moved(result: Mapping[str, Any]) -> str:
    """The bytes that a process receives in a step."""
    lines = ["| engine | processes | parameters, bytes | computed | counted | counted / computed |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    lines += [
        f"| {row['engine']} | {row['processes']} | {row['parameter_bytes']:,} "
        f"| {row['computed']:,.0f} | {row['counted']:,.0f} "
        f"| {row['counted'] / row['computed']:.3f} |"
        for row in _rows(result, "bytes")
    ]
    return "\n".join([*lines, "", where(result)])


def imagenet(result: Mapping[str, Any]) -> str:
    """The projected speed of several GPUs, and its assumptions."""
    assumed = result["recipe"]["assumed"]
    head = "| GPUs | batch | received per step | communication | images per second | efficiency "
    lines = [f"{head}| without overlap | {assumed['epochs']} epochs | JPEGs | cores | packed |"]
    lines.append("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    lines += [
        f"| {row['gpus']} | {row['batch']:,} | {row['received_bytes'] / 1e6:.0f} MB "
        f"| {1000 * row['travel_seconds']:.1f} ms | {row['images_per_second']:,.0f} "
        f"| {100 * row['efficiency']:.1f} % | {100 * row['efficiency_without_overlap']:.1f} % "
        f"| {row['hours']:.2f} h | {row['jpeg_bytes_per_second'] / 1e9:.1f} GB/s "
        f"| {row['cores_for_jpegs']:,.0f} | {row['cores_for_packed']:,.0f} |"
        for row in _rows(result, "projection")
    ]
    (one,) = (row for row in _rows(result, "projection") if row["gpus"] == 1)
    assumptions = (
        f"Assumed, not measured: one GPU trains {assumed['images_per_second']:,.0f} images of "
        f"{assumed['model']} per second (H100 class, bfloat16, channels_last) in batches of "
        f"{assumed['batch_a_gpu']}, with {100 * assumed['backward_share']:.0f} % of a step in the "
        f"backward pass; {assumed['gpus_a_node']} GPUs per machine; an all-reduce runs at "
        f"{assumed['bytes_per_second_in_a_node'] / 1e9:.0f} GB/s within a machine and at "
        f"{assumed['bytes_per_second_between_nodes'] / 1e9:.0f} GB/s per GPU between machines, "
        f"with {1e6 * assumed['seconds_a_hop']:.0f} µs per hop of the ring and bucket of "
        f"{assumed['bucket_bytes'] / 2**20:.0f} MiB; gradients of {one['gradient_bytes']:,} bytes "
        f"in float32; {assumed['images']:,} images of {assumed['jpeg_bytes'] / 1000:.0f} kB; a "
        f"core decodes {assumed['jpegs_a_core']:,.0f} JPEGs per second, or reads "
        f"{assumed['packed_a_core']:,.0f} images from a packed file."
    )
    return "\n".join([*lines, "", assumptions])


def where(result: Mapping[str, Any]) -> str:
    """Machine, versions and date."""
    machine, versions = result["machine"], result["versions"]
    note = f"; {machine['note']}" if machine.get("note") else ""
    return (
        f"{machine['processor']}, {machine['cores']} cores, torch {versions['torch']}, "
        f"{result['date'][:10]}{note}."
    )


def _rows(result: Mapping[str, Any], kind: str) -> list[Mapping[str, Any]]:
    return [row for row in result["rows"] if row["what"] == kind]
