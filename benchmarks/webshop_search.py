"""WebShop's search: the agreement of its rankings with the original's, and the cost of the full catalogue.

    python benchmarks/webshop_search.py --data FOLDER --anserini anserini-0.14.3-fatjar.jar [--products 1180000 --folder DIR] [--json]

The original searches through Anserini, a Java program around Lucene, which is run here to index the same products and to answer the same
queries: titles, instructions, one attribute of each product, and kinds of products. Its jar is in the wheel of pyserini 0.17.0, the
release that the original pins: `pip download --no-deps pyserini==0.17.0` and unzip. Java 11 or later has to be installed.

With `--products` a catalogue of that size is made up from the words of the given one and a long tail of invented ones, and indexed in a
separate process; another process then opens the index and searches. None of this needs Java.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from leafe.worlds.webshop.analyser import tokens
from leafe.worlds.webshop.catalogue import Catalogue, files_of
from leafe.worlds.webshop.products import indexed_text

ROOT = Path(__file__).resolve().parent.parent
DEPTH = 50


def main() -> None:
    """Reads the arguments, measures and prints."""
    parser = argparse.ArgumentParser(description="WebShop's search against the original's, and at full size")
    parser.add_argument("--data", help="an items_shuffle file or its folder; the catalogue that ships unless given")
    parser.add_argument("--anserini", help="the path of anserini's fatjar")
    parser.add_argument("--products", type=int, default=0, help="the size of the catalogue to make up, as 1180000")
    parser.add_argument("--folder", help="where to make it; a temporary folder unless given")
    parser.add_argument("--queries", type=int, default=300, help="how many to time at that size")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--stage", choices=("index", "search"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        print(json.dumps(index_alone(Path(options.folder)) if options.stage == "index" else search_alone(Path(options.folder))))
        return
    catalogue = Catalogue(files_of(options.data), None)
    report: dict[str, Any] = {"catalogue": len(catalogue), "rankings": compare(catalogue, options.anserini)}
    if options.products:
        with tempfile.TemporaryDirectory() as temporary:
            report["full_size"] = full_size(catalogue, Path(options.folder or temporary), options)
    print(json.dumps(report) if options.json else shown(report))


def queries_of(catalogue: Catalogue) -> list[str]:
    """Queries of four kinds, each once."""
    found: list[str] = []
    for number in range(len(catalogue)):
        product, entry = catalogue.product(number), catalogue.attributes(number) or {}
        found += [product.title, product.query, entry.get("instruction") or "", *product.attributes[:1]]
    return list(filter(None, dict.fromkeys(" ".join(text.lower().split()) for text in found)))


def compare(catalogue: Catalogue, jar: str | None) -> dict[str, Any]:
    """Our first ten and fifty beside Lucene's."""
    queries = queries_of(catalogue)
    start = perf_counter()
    ours = [[catalogue.product(number).asin for number in catalogue.search(query)] for query in queries]
    seconds = perf_counter() - start
    timed = {"queries": len(queries), "milliseconds_per_query": 1000 * seconds / len(queries)}
    if jar is None:
        return {**timed, "problem": "no comparison: name Anserini's jar with --anserini"}
    try:
        theirs = lucene(catalogue, queries, jar)
    except OSError as error:
        return {**timed, "problem": f"no comparison: Java cannot be run ({error}); install Java 11 or later"}
    except subprocess.CalledProcessError as error:
        said = (error.stderr.decode(errors="replace").strip().splitlines() or ["no output"])[0]
        return {**timed, "problem": f"no comparison: Anserini cannot be run ({said}); is {jar} its fatjar?"}
    pairs = list(zip(ours, theirs, strict=True))
    return {
        **timed,
        "same_first": share(a[:1] == b[:1] for a, b in pairs),
        "same_first_ten_in_order": share(a[:10] == b[:10] for a, b in pairs),
        "same_first_fifty_in_order": share(a == b for a, b in pairs),
        "overlap_of_first_ten": statistics.mean(len(set(a[:10]) & set(b[:10])) / max(1, len(b[:10])) for a, b in pairs),
    }


def share(found: Iterator[bool]) -> float:
    """The mean of some truths."""
    return statistics.mean(map(float, found))


def lucene(catalogue: Catalogue, queries: list[str], jar: str) -> list[list[str]]:
    """Anserini's results for the queries, requested as by the original."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "documents").mkdir()
        with (folder / "documents" / "all.jsonl").open("w", encoding="utf-8") as file:
            for number in range(len(catalogue)):
                product = catalogue.product(number)
                file.write(json.dumps({"id": product.asin, "contents": indexed_text(product)}) + "\n")
        lines = "".join(f"{number}\t{query}\n" for number, query in enumerate(queries))
        (folder / "queries.tsv").write_text(lines, encoding="utf-8")
        java(
            jar,
            "io.anserini.index.IndexCollection",
            collection="JsonCollection",
            input=folder / "documents",
            index=folder / "index",
        )
        java(
            jar,
            "io.anserini.search.SearchCollection",
            index=folder / "index",
            topics=folder / "queries.tsv",
            topicreader="TsvInt",
            output=folder / "run",
            hits=DEPTH,
            bm25=None,
        )
        found: list[list[str]] = [[] for _ in queries]
        for line in (folder / "run").read_text(encoding="utf-8").splitlines():
            query, _, asin, *_ = line.split()
            found[int(query)].append(asin)
        return found


def java(jar: str, program: str, **settings: Any) -> None:
    """Runs one of Anserini's programs."""
    extra = {"generator": "DefaultLuceneDocumentGenerator", "threads": 1} if "collection" in settings else {}
    words = [str(word) for name, value in {**settings, **extra}.items() for word in (f"-{name}", value) if word is not None]
    subprocess.run(["java", "-cp", jar, program, *words], check=True, capture_output=True)


def full_size(catalogue: Catalogue, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Makes a large catalogue up, and indexes and searches it in separate processes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "items_shuffle.json"
    if not path.exists():
        make_up(catalogue, path, options.products)
    (folder / "queries.json").write_text(json.dumps(made_queries(catalogue, options.queries)), encoding="utf-8")
    report: dict[str, Any] = {"products": options.products, "file_megabytes": path.stat().st_size / 1e6}
    for stage in ("index", "search"):
        command = [sys.executable, str(Path(__file__).resolve()), "--stage", stage, "--folder", str(folder)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        report |= json.loads(done.stdout)
    return report


def make_up(catalogue: Catalogue, path: Path, count: int, tail: int = 600_000) -> None:
    """Products with the lengths of the given ones; nine words of ten follow their word frequencies, the tenth is rare."""
    known: Counter[str] = Counter()
    lengths = []
    for number in range(len(catalogue)):
        found = tokens(indexed_text(catalogue.product(number)))
        known.update(found)
        lengths.append(len(found))
    draw = np.random.default_rng(0)
    vocabulary = np.array([*known, *(f"x{number:x}" for number in range(tail))], object)
    common = np.array(list(known.values()), float)
    rare = 1 / np.arange(1, tail + 1)
    probs = np.cumsum(np.concatenate([0.9 * common / common.sum(), 0.1 * rare / rare.sum()]))
    sizes = draw.choice(lengths, count)
    with path.open("w", encoding="utf-8") as file, path.with_name("items_ins_v2.json").open("w", encoding="utf-8") as attributes:
        file.write("[")
        attributes.write("{")
        for number in range(count):
            if number % 1000 == 0:
                wanted = int(sizes[number : number + 1000].sum()) + 1000
                words, at = vocabulary[np.minimum(np.searchsorted(probs, draw.random(wanted)), len(vocabulary) - 1)].tolist(), 0
            own = words[at : at + max(16, int(sizes[number]))]
            at += int(sizes[number])
            asin = f"B{number:09d}"
            entry = {
                "asin": asin,
                "name": " ".join(own[:14]),
                "full_description": " ".join(own[14:-8]),
                "small_description": [" ".join(own[-8:]), "second"],
                "customization_options": {"color": [{"value": own[0]}, {"value": own[1]}]},
                "pricing": f"${number % 300}.99",
                "query": own[2],
                "category": "made up",
                "product_category": f"{own[3]} › {own[4]}",
                "images": ["https://example.org/a-picture-of-this-product.jpg"] * 6,
            }
            file.write((", " if number else "") + json.dumps(entry))
            instruction = {"attributes": own[5:8], "instruction": f"Find me {own[2]}", "instruction_attributes": own[5:6]}
            attributes.write((", " if number else "") + f"{json.dumps(asin)}: {json.dumps(instruction)}")
        file.write("]")
        attributes.write("}")


def made_queries(catalogue: Catalogue, count: int) -> list[str]:
    """Whole instructions and titles, as agents type them."""
    every = [query for query in queries_of(catalogue) if len(query.split()) > 3]
    return random.Random(0).sample(every, min(count, len(every)))


def memory() -> dict[str, float]:
    """Megabytes of this process: private ones, and those mapped from files, which processes can share."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return {name: int(status[name].split()[0]) / 1e3 for name in ("RssAnon", "RssFile")}


def index_alone(folder: Path) -> dict[str, float]:
    """Makes the index as the environment does at its first start."""
    start = perf_counter()
    Catalogue(files_of(str(folder)), folder / "index")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    size = sum(file.stat().st_size for file in (folder / "index").rglob("*.npy")) / 1e6
    return {"index_seconds": perf_counter() - start, "index_peak_megabytes": peak, "index_on_disk_megabytes": size}


def search_alone(folder: Path) -> dict[str, float]:
    """Opens the existing index and answers each query once."""
    start = perf_counter()
    catalogue = Catalogue(files_of(str(folder)), folder / "index")
    opened = perf_counter() - start
    seconds = []
    for query in json.loads((folder / "queries.json").read_text(encoding="utf-8")):
        start = perf_counter()
        for number in catalogue.search(query)[:10]:
            catalogue.product(number)
        seconds.append(perf_counter() - start)
    seconds.sort()
    times = {"median": statistics.median(seconds), "p95": seconds[int(0.95 * len(seconds))], "max": seconds[-1]}
    return {"open_seconds": opened, **{f"search_ms_{name}": 1000 * value for name, value in times.items()}, **memory()}


def shown(report: dict[str, Any]) -> str:
    """The report as lines."""
    lines = []
    for part, figures in report.items():
        lines.append(f"{part}: {figures}" if not isinstance(figures, dict) else part)
        if isinstance(figures, dict):
            lines += [
                f"  {name:28} {value:.4g}" if isinstance(value, float) else f"  {name:28} {value}"
                for name, value in figures.items()
            ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
