"""What this machine can do: pictures a second and peak memory of encoding, decoding and a training step.

Random weights cost what trained ones do, so that no checkpoint is needed. Methods are timed in turns, so that a machine
that slows down does so for all.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch

from samtune.common import provenance
from samtune.common.errors import is_out_of_memory
from samtune.common.paths import results_root
from samtune.methods import METHODS, Method, build_method
from samtune.prompts import Prompts
from samtune.sam.build import new_sam
from samtune.study.cells import TimingCell
from samtune.study.records import Record
from samtune.study.runner import Result, run_cells
from samtune.training import usable_device

PHASES = ("encode", "decode", "train")
SHARES = {"nano": 0.2, "vit_b": 1.0, "vit_l": 1.0, "vit_h": 1.0}  # of the time
BATCHES = (1, 2, 4, 8, 16, 32)
ROUNDS = 4  # a first one to warm up, then three of which the median counts
GAIN = 1.05  # a batch twice as large that gains less is the last one tried

Step = Callable[[], object]


def bench_methods() -> list[str]:
    """What is timed: every method that trains something."""
    return [name for name in METHODS if name != "zero_shot"]


def run_bench(
    results: str | Path,
    backbones: Sequence[str] = (),
    minutes: float = 5.0,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> list[Record]:
    """Time all methods on each backbone as far as `minutes` reach, and record it; what has a record is read.

    Batches double until a step does not fit into memory, gains nothing, or would not end in time.

    Args:
        results: a profile's name, or its results folder.
        backbones: from small to large; none: those that the device can train in minutes.
        minutes: in all.
        device: "auto", "cpu", "cuda" ...
        say: is told what is being timed.
    """
    folder = results if isinstance(results, Path) else results_root(results)
    device = usable_device(device)
    backbones = backbones or (("nano", "vit_b") if device == "cpu" else tuple(SHARES))
    end = time.perf_counter() + 60 * minutes
    records: list[Record] = []
    for place, backbone in enumerate(backbones):
        left = sum(SHARES[name] for name in backbones[place:])
        until = time.perf_counter() + (end - time.perf_counter()) * SHARES[backbone] / left
        for precision, compiled in settings(device):
            left = max(0, until - time.perf_counter())
            say(f"{backbone}, {precision}{', compiled' if compiled else ''}: up to {left:.0f} s")
            records += _bench_setting(folder, backbone, device, precision, compiled, until)
    return records


def settings(device: str) -> list[tuple[str, bool]]:
    """The precisions, and whether compiled, that are worth a try on `device`."""
    if device.startswith("cuda"):
        return [(precision, compiled) for compiled in (False, True) for precision in ("bf16", "fp32")]
    return [(precision, False) for precision in dict.fromkeys(("fp32", provenance.choose_precision("auto", device)))]


def _bench_setting(
    folder: Path, backbone: str, device: str, precision: str, compiled: bool, until: float
) -> list[Record]:
    """The records of one backbone in one setting, until the time `until` (of `time.perf_counter`)."""
    methods: dict[str, Method] = {}
    growing = {
        (name, phase): 0.0 for name in bench_methods() for phase in PHASES
    }  # pictures a second at the batch before
    records: list[Record] = []
    for batch in BATCHES:
        cells = {
            (name, phase): TimingCell(
                name, backbone, phase, batch, precision, compiled, provenance.device_name(device), ("speed",)
            )
            for (name, phase), speed in growing.items()
            if batch == 1 or batch / speed < until - time.perf_counter()
        }
        timed: dict[str, Result] = {}

        def execute(cell: TimingCell, _: Path, timed: dict[str, Result] = timed, cells: Mapping = cells) -> Result:
            if not timed:  # all in turns
                methods.update(methods or _build(backbone, device, compiled))
                timed.update(_time(cells, methods, device, until))
            return timed[cell.key()]

        found = run_cells(list(cells.values()), folder, execute, say=lambda line: None)
        records += found
        speeds = {place: record.extras["images_per_second"] for place, record in zip(cells, found, strict=True)}
        growing = {place: speed for place, speed in speeds.items() if speed > GAIN * growing[place]}
        if not growing or time.perf_counter() > until:
            break
    methods.clear()
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    return records


def _build(backbone: str, device: str, compiled: bool) -> dict[str, Method]:
    """Every method on random weights; its encoder compiled where asked."""
    built = {}
    for name in bench_methods():
        torch.manual_seed(0)
        sam = new_sam(backbone)
        if METHODS[name].needs_sam:
            built[name] = build_method(name, sam)
        else:  # on pictures as large as the backbone's
            built[name] = build_method(name, None, image_size=sam.image_size)
        built[name].to(device)
        if compiled:
            (built[name].sam.image_encoder if METHODS[name].needs_sam else built[name]).compile()
    return built


def _time(
    cells: Mapping[tuple[str, str], TimingCell], methods: Mapping[str, Method], device: str, until: float
) -> dict[str, Result]:
    """The result of every cell by its key: the median of some rounds, in each of which every step has its turn.

    Once time is up no step is repeated; each is run once at least. One that does not fit makes 0 pictures a second.
    """
    steps = {place: _step(methods[place[0]], cell, device) for place, cell in cells.items()}
    seconds: dict[tuple[str, str], list[float]] = {place: [] for place in steps}
    memory: dict[tuple[str, str], float | None] = {}
    for number in range(ROUNDS):
        for place in [place for place in steps if number == 0 or time.perf_counter() < until]:
            try:
                taken, memory[place] = _run(steps[place], device)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                del steps[place]
                continue
            seconds[place].append(taken)
    results = {}
    for place, cell in cells.items():
        taken = statistics.median(seconds[place][1:] or seconds[place]) if place in steps else None
        extras = {
            "images_per_second": cell.batch / taken if taken else 0.0,
            "peak_memory_mb": memory.get(place),
            "trainable_parameters": methods[place[0]].count_trainable(),
        }
        results[cell.key()] = Result(precision=cell.precision, seconds=taken or 0.0, extras=extras)
    return results


def _step(method: Method, cell: TimingCell, device: str) -> Step:
    """One encoding, decoding or training step of a batch of random pictures, a box each."""
    size, batch = method.image_size, cell.batch
    images = torch.randn(batch, 3, size, size, device=device)
    boxes = torch.tensor([[0.2, 0.2, 0.7, 0.7]], device=device).repeat(batch, 1) * size
    prompts = Prompts(torch.arange(batch, device=device), boxes)
    masks = torch.zeros(batch, 1, size, size, device=device)
    masks[:, :, size // 5 : size * 7 // 10, size // 5 : size * 7 // 10] = 1
    with torch.no_grad():
        embedding = method.eval().encode(images[:1]).expand(batch, -1, -1, -1)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=cell.precision == "bf16")
    optimiser = torch.optim.AdamW(method.trainable().values(), lr=1e-4)

    def encode() -> None:
        with torch.no_grad(), autocast:
            method.eval().encode(images)

    def decode() -> None:
        with torch.no_grad(), autocast:
            method.eval().decode(embedding, prompts)

    def train() -> None:
        with autocast:
            loss = method.train().loss(method(images, prompts), masks, torch.Generator(device).manual_seed(0))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return {"encode": encode, "decode": decode, "train": train}[cell.phase]


def _run(step: Step, device: str) -> tuple[float, float | None]:
    """Seconds that a step takes, and the graphics memory in MiB that it needs beside the weights of all methods.

    On a CPU no memory is measured: what one step frees the next one takes, without the system's notice.
    """
    if not device.startswith("cuda"):
        start = time.perf_counter()
        step()
        return time.perf_counter() - start, None
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    start = time.perf_counter()
    step()
    torch.cuda.synchronize(device)
    taken = time.perf_counter() - start
    return taken, (torch.cuda.max_memory_allocated(device) - held) / 2**20


def speed_table(records: Sequence[Record]) -> pd.DataFrame:
    """One row a timing: method, backbone, phase, batch, precision, compiled, device, images_per_second,
    peak_memory_mb, trainable_parameters."""
    columns = ["method", "backbone", "phase", "batch", "precision", "compiled", "device"]
    measured = ["images_per_second", "peak_memory_mb", "trainable_parameters"]
    rows = [
        {name: record.cell[name] for name in columns} | {name: record.extras[name] for name in measured}
        for record in records
        if record.kind == "timing"
    ]
    table = pd.DataFrame(rows, columns=columns + measured)
    order = table["backbone"].map(list(SHARES).index)
    return table.assign(order=order).sort_values(["device", "order", *columns[:-1]]).drop(columns="order")


def recommendations(table: pd.DataFrame) -> pd.DataFrame:
    """Of a speed table, the fastest training step of each method and backbone on each device: batch, precision and
    whether to compile."""
    trained = table[(table["phase"] == "train") & (table["images_per_second"] > 0)]
    best = trained.groupby(["device", "backbone", "method"], sort=False)["images_per_second"].idxmax()
    return trained.loc[best].drop(columns="phase")
