"""The arithmetic of docs/concepts/scale.md: its tables are what this prints into the page, and nothing else.

`python docs/scale.py` fills the page; `python docs/scale.py peak=312e12 network=12.5e9` prints the same tables for
other machines and leaves the page alone. No number here was measured on a GPU.
"""

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

PAGE = Path(__file__).parent / "concepts" / "scale.md"
GPUS = (1, 8, 64)


@dataclass(frozen=True)
class Machine:
    """peak: FLOP/s of a GPU in bf16 (maker's figure, H100 SXM). utilisation: the share of it that training reaches
    (planned). link, network: bytes/s of a GPU in each direction inside a node (NVLink) and between nodes (400 Gbit/s
    for each GPU). node: GPUs in a node. core: images/s that one core decodes and crops. latency: seconds until an
    object store answers. small, full: bytes of an image after `data prepare --short-side 256`, and of ImageNet's.
    batch: images of an optimiser step. storage, egress: money for a GB kept a month, and for a GB that leaves.
    """

    peak: float = 989e12
    utilisation: float = 0.4
    link: float = 450e9
    network: float = 50e9
    node: float = 8
    core: float = 1070
    latency: float = 0.03
    small: float = 27e3
    full: float = 115e3
    batch: float = 4096
    storage: float = 0.02
    egress: float = 0.09


@dataclass(frozen=True)
class Model:
    """parameters; FLOPs of an image in a training step, as `mimkit plan` counts them; bytes that an image keeps for
    the backward pass in bf16, plain and with encoder.checkpointing (`analysis.cost.activation_bytes`).
    """

    name: str
    parameters: float
    flops: float
    kept: float
    checkpointed: float


MODELS = (
    Model("mae_base", 111.9e6, 57.1e9, 56.7e6, 41.2e6),
    Model("mae_large", 329.5e6, 122.8e9, 85.6e6, 44.4e6),
    Model("mae_huge", 657.1e6, 289.2e9, 139.2e6, 49.7e6),
)


def speed(model: Model, machine: Machine) -> float:
    """Images/s of one GPU that waits for nothing."""
    return machine.peak * machine.utilisation / model.flops


def compute(model: Model, machine: Machine, gpus: int) -> float:
    """Seconds of arithmetic in a step."""
    return machine.batch / (gpus * speed(model, machine))


def exchange(model: Model, machine: Machine, gpus: int, times: float) -> float:
    """Seconds to send 4 bytes a parameter `times` around the ring: 2 for DDP, 3 for FSDP."""
    rate = machine.link if gpus <= machine.node else machine.network
    return times * (gpus - 1) / gpus * 4 * model.parameters / rate


def step(model: Model, machine: Machine, gpus: int) -> float:
    """Seconds of a step with DDP: gradients travel while the backward pass, two thirds of the arithmetic, goes on."""
    arithmetic = compute(model, machine, gpus)
    return arithmetic / 3 + max(arithmetic * 2 / 3, exchange(model, machine, gpus, 2))


def hours(model: Model, machine: Machine, gpus: int, seen: float) -> float:
    return seen / machine.batch * step(model, machine, gpus) / 3600


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def one_gpu(machine: Machine) -> str:
    head = ["recipe", "GFLOP an image", "images/s", "cores to feed it", "MB/s at 27 kB", "MB/s at 115 kB"]
    rows = []
    for model in MODELS:
        rate = speed(model, machine)
        small, full = rate * machine.small / 1e6, rate * machine.full / 1e6
        numbers = [f"{rate:,.0f}", f"{rate / machine.core:.1f}", f"{small:.0f}", f"{full:.0f}"]
        rows.append([f"`{model.name}`", f"{model.flops / 1e9:.1f}", *numbers])
    return table(head, rows)


def memory(_machine: Machine) -> str:
    head = [
        "recipe",
        "parameters",
        "DDP, each GPU",
        "FSDP on 8",
        "FSDP on 64",
        "64 images in bf16",
        "checkpointed",
    ]
    rows = []
    for model in MODELS:
        states = [f"{16 * model.parameters / share / 1e9:.2f} GB" for share in (1, 8, 64)]
        images = [f"{64 * kept / 1e9:.1f} GB" for kept in (model.kept, model.checkpointed)]
        rows.append([f"`{model.name}`", f"{model.parameters / 1e6:.0f} M", *states, *images])
    return table(head, rows)


def network(machine: Machine) -> str:
    head = ["recipe", "GPUs", "arithmetic", "DDP sends", "takes", "FSDP sends", "takes", "step with DDP"]
    rows = []
    for model in MODELS:
        for gpus in GPUS[1:]:
            sent = [times * (gpus - 1) / gpus * 4 * model.parameters / 1e9 for times in (2, 3)]
            taken = [1e3 * exchange(model, machine, gpus, times) for times in (2, 3)]
            both = [f"{s:.2f} GB | {t:.1f} ms" for s, t in zip(sent, taken, strict=True)]
            whole = 1e3 * step(model, machine, gpus)
            arithmetic = 1e3 * compute(model, machine, gpus)
            rows.append([f"`{model.name}`", str(gpus), f"{arithmetic:.1f} ms", *both, f"{whole:.1f} ms"])
    return table(head, rows)


def duration(machine: Machine) -> str:
    head = [
        "recipe",
        "GPUs",
        "1.28 M images x 800",
        "the same, GPU hours",
        "1 billion images x 1",
        "reads at 27 kB",
    ]
    rows = []
    for model in MODELS:
        for gpus in GPUS:
            imagenet = hours(model, machine, gpus, 1.281e6 * 800)
            rate = machine.batch / step(model, machine, gpus) * machine.small / 1e9
            times = [
                f"{imagenet:,.1f} h",
                f"{imagenet * gpus:,.0f}",
                f"{hours(model, machine, gpus, 1e9):,.1f} h",
            ]
            rows.append([f"`{model.name}`", str(gpus), *times, f"{rate:.2f} GB/s"])
    return table(head, rows)


def store(machine: Machine) -> str:
    head = ["images", "bytes, 27 kB each", "bytes, 115 kB each", "a month, 27 kB", "egress an epoch, 27 kB"]
    rows = []
    for count in (1.281e6, 1e8, 1e9):
        small, full = count * machine.small, count * machine.full
        money = [f"{small / 1e9 * price:,.0f}" for price in (machine.storage, machine.egress)]
        rows.append([f"{count / 1e6:,.2f} M", f"{small / 1e12:.2f} TB", f"{full / 1e12:.2f} TB", *money])
    return table(head, rows)


TABLES = {"one gpu": one_gpu, "memory": memory, "network": network, "duration": duration, "store": store}


def filled(text: str, machine: Machine) -> str:
    """The page with every table as the arithmetic has it."""
    for name, make in TABLES.items():
        before, _, rest = text.partition(f"<!-- begin: {name} -->\n")
        _, _, after = rest.partition(f"<!-- end: {name} -->")
        text = f"{before}<!-- begin: {name} -->\n{make(machine)}<!-- end: {name} -->{after}"
    return text


def main() -> None:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    unknown = set(given) - {entry.name for entry in fields(Machine)}
    if unknown:
        sys.exit(
            f"{sorted(unknown)[0]} is not known; use {', '.join(entry.name for entry in fields(Machine))}."
        )
    if given:
        machine = replace(Machine(), **{name: float(value) for name, value in given.items()})
        print("\n".join(f"{name}\n\n{make(machine)}" for name, make in TABLES.items()))
    else:
        PAGE.write_text(filled(PAGE.read_text(), Machine()))


if __name__ == "__main__":
    main()
