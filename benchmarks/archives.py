"""What an archive costs by the number of its documents: to index once, to open, and to read as training does.

    python benchmarks/archives.py
    python benchmarks/archives.py --sizes 1000 10000 100000 1000000       # some minutes, 2 GB at a time

Archives of tiny documents, a sentence and a picture, are written, measured and deleted: our shards,
WebDataset tars with captions, and parquet with the pictures inside. Documents come in the order of an epoch,
from a place in it that differs from round to round; their pictures are not decoded, which costs the same in
any archive. Files are in the page cache, so this is what the CPU does; bytes are those of system calls.
"""

import argparse
import io
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as PILImage
from rounds import cpu_seconds, parse_arguments, positive, print_table, report, use_one_thread

from dreamllm.data.index import INDEX_FOLDER
from dreamllm.data.shards import write_shards
from dreamllm.data.sources import ArchiveSource, ArchiveSourceConfig
from dreamllm.document.document import Document, Image, Text

DOCUMENTS_PER_FILE = 10_000
WINDOW = 8
ROWS_PER_GROUP = 125
READ = WINDOW * ROWS_PER_GROUP
"""Documents read in a round: those of one shuffle window of row groups, as many in the smallest archive."""
PROCESS_IO = Path("/proc/self/io")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one archive; seconds are of the CPU."""

    files: int
    size_bytes: int
    has_index: bool
    """Whether one is made when it is first opened."""
    index_s: float
    """To open it for the first time, less a later opening."""
    index_bytes: int
    open_s: float
    open_bytes: int
    """Read by opening it again."""
    first_s: float
    """The first document after opening."""
    each_s: float
    each_bytes: float
    """A document of those read one after the other."""


def main() -> int:
    """Measure; 1 if an archive does not hold what was written."""
    arguments = parse_arguments(__doc__, _add_arguments, rounds=7)
    use_one_thread()
    costs: dict[str, dict[int, Cost]] = {}
    for name, write in WRITERS.items():
        costs[name] = {size: measure(write, size, arguments) for size in arguments.sizes}
    for name, by_size in costs.items():
        first = next(iter(by_size.values()))
        print_table(
            f"{name}, by the number of documents; the first as 1",
            ["files", "index once, a document", "open", "first document", "each document", "bytes to open"],
            {
                f"{size:,}": [
                    f"{cost.files:,}",
                    f"{cost.index_s / size / (first.index_s / arguments.sizes[0]):.2f}"
                    if cost.has_index
                    else "none",
                    f"{cost.open_s / first.open_s:.2f}",
                    f"{cost.first_s / first.first_s:.2f}",
                    f"{cost.each_s / first.each_s:.2f}",
                    f"{cost.open_bytes:,} of {cost.size_bytes:,}",
                ]
                for size, cost in by_size.items()
            },
        )
        largest = by_size[arguments.sizes[-1]]
        print(
            f"  Opening the last costs as much as reading {largest.open_s / largest.each_s:.0f} documents; "
            f"one document reads {largest.each_bytes:,.0f} bytes.\n"
        )
    report(
        "archives",
        arguments,
        {name: {size: asdict(cost) for size, cost in sizes.items()} for name, sizes in costs.items()},
    )
    return 0


def measure(write: Callable[[Path, int], None], size: int, arguments: argparse.Namespace) -> Cost:
    """Write an archive of so many documents, measure and delete it."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "archive"
        path.mkdir()
        write(path, size)
        data = [file for file in path.iterdir() if file.suffix in (".tar", ".parquet")]
        config = ArchiveSourceConfig(path=path, shuffle_window=WINDOW)
        open_source(config)  # imports what the format needs
        shutil.rmtree(path / INDEX_FOLDER, ignore_errors=True)
        index_s, index_bytes = cost_of(lambda: open_source(config))
        openings, firsts, passes = [], [], []
        for number in range(arguments.rounds):
            openings.append(cost_of(lambda: open_source(config)))
            source = open_source(config)
            if len(source) != size:
                raise SystemExit(f"an archive of {size} documents has {len(source)}")
            start = int(np.random.default_rng([number, size]).integers(size // READ)) * READ
            firsts.append(cost_of(lambda source=source, at=start: source[at]))
            source = open_source(config)
            passes.append(cost_of(lambda source=source, at=start: read(source, at)))
        open_s, open_bytes = (median(values) for values in zip(*openings, strict=True))
        each_s, each_bytes = (median(values) for values in zip(*passes, strict=True))
        return Cost(
            files=len(data),
            size_bytes=sum(file.stat().st_size for file in data),
            has_index=(path / INDEX_FOLDER).exists(),
            index_s=index_s - open_s,
            index_bytes=index_bytes,
            open_s=open_s,
            open_bytes=int(open_bytes),
            first_s=median(seconds for seconds, _ in firsts),
            each_s=each_s / READ,
            each_bytes=each_bytes / READ,
        )


def open_source(config: ArchiveSourceConfig) -> ArchiveSource:
    """As a run does."""
    return ArchiveSource(config, 0)


def read(source: ArchiveSource, start: int) -> None:
    """READ documents of an epoch; each must be one that was written."""
    for index in range(start, start + READ):
        if len(source[index].images) != 1:
            raise SystemExit(f"document {index} has no picture")


def cost_of(work: Callable[[], object]) -> tuple[float, int]:
    """CPU seconds, and bytes that system calls read."""
    before = bytes_read()
    seconds = cpu_seconds(work)
    after = bytes_read()
    asking = bytes_read() - after  # to read the counter counts too
    return seconds, after - before - asking


def bytes_read() -> int:
    """By this process so far; 0 where the system does not say it."""
    return int(PROCESS_IO.read_text().split()[1]) if PROCESS_IO.exists() else 0


def write_own_shards(folder: Path, size: int) -> None:
    """`dreamllm data shard`."""
    documents = (
        Document(parts=(Text(text=sentence(number)), Image(source=PICTURE)), id=str(number))
        for number in range(size)
    )
    write_shards(documents, folder, documents_per_shard=DOCUMENTS_PER_FILE)


def write_tars(folder: Path, size: int) -> None:
    """KEY.txt and KEY.png, as img2dataset writes them."""
    for file, numbers in files(size):
        with (folder / f"{file:05d}.tar").open("wb") as tar:
            for number in numbers:
                for suffix, data in (("png", PICTURE), ("txt", sentence(number).encode())):
                    member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    member.size = len(data)
                    tar.write(member.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512))
            tar.write(bytes(1024))


def write_parquet(folder: Path, size: int) -> None:
    """Columns of BAGEL's text-to-image data."""
    for file, numbers in files(size):
        table = pa.table(
            {"image": [PICTURE] * len(numbers), "captions": [sentence(number) for number in numbers]}
        )
        path = folder / f"{file:05d}.parquet"  # equal pictures would be one entry of a dictionary
        pq.write_table(table, path, row_group_size=ROWS_PER_GROUP, use_dictionary=False, compression="none")


def files(size: int) -> Iterator[tuple[int, range]]:
    """Numbers of the files, and of the documents in each."""
    for file, start in enumerate(range(0, size, DOCUMENTS_PER_FILE)):
        yield file, range(start, min(start + DOCUMENTS_PER_FILE, size))


def sentence(number: int) -> str:
    """The text of a document."""
    return f"A picture of the thing with the number {number}."


def _picture() -> bytes:
    buffer = io.BytesIO()
    PILImage.new("RGB", (8, 8), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sizes", type=positive, nargs="+", default=[10**3, 10**4, 10**5], help="documents of an archive"
    )
    parser.add_argument("--folder", help="where archives are made for the time of the run")


PICTURE = _picture()
WRITERS = {"shards": write_own_shards, "captions in tar files": write_tars, "parquet": write_parquet}

if __name__ == "__main__":
    raise SystemExit(main())
