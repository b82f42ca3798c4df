"""imgrec compare: runs beside one another, what differs, and whether one is better than the first."""

import json
import shutil

import numpy as np
import pytest
import torch
from error_parts import assert_refused
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score
from written_runs import WORDS, write_run

from imgrec import cli, config
from imgrec.analysis.intervals import share_interval
from imgrec.files import is_our_png, on_progress
from imgrec.inference.curves import draw_curves
from imgrec.inference.prediction_table import write_table
from imgrec.train import fit
from imgrec.training.comparison import (
    Comparison,
    compare_entries,
    comparison_sentence,
    entry_name,
    letters,
    main_values,
    make_entries,
)
from imgrec.training.stored_run import read_run, shared_images


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs of one epoch, with rates of 0.003 and 0.01."""
    folder = tmp_path_factory.mktemp("trained")
    for rate in (0.003, 0.01):
        fit(config.load("train", [*WORDS, f"runs_dir={folder}", "name=digits", f"optim.lr={rate}"]), quiet=True)
    return folder / "digits"


def labels(share, seed, images=100, classes=4):
    """(classes, predictions) of which about this share is right."""
    draw = np.random.default_rng(seed)
    true = np.random.default_rng(99).integers(classes, size=images)
    return true, np.where(draw.random(images) < share, true, draw.integers(classes, size=images))


def run(folder, share, seed=0, **options):
    true, predicted = labels(share, seed)
    return write_run(folder, true=true, predicted=predicted, **options)


def compare(folder, *words, plot=False):
    """Exit code and compare.json."""
    words = [*words, f"out={folder}/compare.json", "resamples=200", *(() if plot else ("plot=none",))]
    code = cli.main(["compare", *map(str, words)])
    return code, json.loads((folder / "compare.json").read_text()) if code == 0 else None


def test_two_trainings_are_compared_image_by_image(trained, tmp_path, capsys):
    code, found = compare(tmp_path, trained / "1", trained / "2", plot=True)
    assert code == 0
    said = capsys.readouterr().out
    tests = [json.loads((trained / str(number) / "result.json").read_text())["test"] for number in (1, 2)]
    assert [entry["test"] for entry in found["runs"]] == [
        {key: test[key] for key in ("accuracy", "macro_f1", "loss")} for test in tests
    ]
    for entry, test in zip(found["runs"], tests, strict=True):
        interval = share_interval(round(test["accuracy"] * test["count"]), test["count"])
        assert entry["accuracy_interval"] == interval.tolist()
        assert f"{test['accuracy']:.2%} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" in said
    assert found["keys"] == {"optim.lr": {"A": 0.003, "B": 0.01}}
    (against,) = found["comparisons"]
    assert (against["entry"], against["baseline"], against["images"]) == ("B", "A", tests[0]["count"])
    assert against["accuracy"][0] == pytest.approx(tests[1]["accuracy"] - tests[0]["accuracy"], abs=1e-12)
    assert against["macro_f1"][0] == pytest.approx(tests[1]["macro_f1"] - tests[0]["macro_f1"], abs=1e-12)
    rows = [read_run(trained / str(number), "runs").comparable for number in (1, 2)]
    right = [row.true == row.predicted for row in rows]
    only = [int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())]
    assert against["only"] == only
    assert against["p"] == pytest.approx(stats.binomtest(only[0], sum(only)).pvalue)
    assert against["sentence"][1:] in said
    assert is_our_png(tmp_path / "compare.png")


def test_each_run_is_held_against_the_baseline_and_p_is_corrected(tmp_path, capsys):
    folders = [
        run(tmp_path / f"n/{number}", share, number, settings={"optim.lr": share})
        for number, share in enumerate((0.9, 0.6, 0.85))
    ]
    code, found = compare(tmp_path, *folders[1:], f"baseline={folders[0]}")
    assert code == 0
    assert [entry["folders"] for entry in found["runs"]] == [[str(folder)] for folder in folders]
    assert [(each["baseline"], each["entry"]) for each in found["comparisons"]] == [("A", "B"), ("A", "C")]
    p = [each["p"] for each in found["comparisons"]]
    assert p[0] < p[1]
    assert [each["corrected_p"] for each in found["comparisons"]] == [2 * p[0], max(2 * p[0], p[1])]
    said = capsys.readouterr().out
    assert "B is worse than A by" in said
    assert "No difference shown between C and A" in said
    assert "corrected for 2 comparisons by Holm's method" in said


def test_the_bar_counts_the_samples_of_all_comparisons(tmp_path):
    entries = make_entries(
        [read_run(run(tmp_path / f"n/{seed}", 0.8, seed, settings={"optim.lr": seed}), "runs") for seed in range(3)]
    )
    seen = []
    token = on_progress.set(lambda what, more, total: seen.append((more, total)))
    compare_entries(entries, entries[0], resamples=100, seed=0)
    on_progress.reset(token)
    assert seen == [(100, 200), (100, 200)]


def test_runs_that_differ_in_their_seed_are_one_row(tmp_path, capsys):
    shares = {"a": (0.7, 0.72, 0.68), "b": (0.95, 0.93)}
    folders = {
        name: [
            run(
                tmp_path / name / str(seed),
                share,
                seed,
                settings={"seed": seed, "name": f"{name}{seed}", "optim.lr": share > 0.8},
            )
            for seed, share in enumerate(row)
        ]
        for name, row in shares.items()
    }
    _, found = compare(tmp_path, *folders["a"][:2], *folders["b"], folders["a"][2])
    assert [entry["seeds"] for entry in found["runs"]] == [[0, 1, 2], [0, 1]]
    assert [entry["name"] for entry in found["runs"]] == ["a/{0,1,2}", "b/{0,1}"]
    accuracies = {name: [accuracy_score(*labels(share, seed)) for seed, share in enumerate(row)] for name, row in shares.items()}
    macro = [f1_score(*labels(share, seed), average="macro") for seed, share in enumerate(shares["a"])]
    first = found["runs"][0]
    assert (first["test"]["accuracy"], first["deviation"]["accuracy"]) == pytest.approx(
        (np.mean(accuracies["a"]), np.std(accuracies["a"], ddof=1))
    )
    assert (first["test"]["macro_f1"], first["deviation"]["macro_f1"]) == pytest.approx((np.mean(macro), np.std(macro, ddof=1)))
    assert found["keys"].keys() == {"optim.lr", "seed"}
    (against,) = found["comparisons"]
    assert against["accuracy"][0] == pytest.approx(np.mean(accuracies["b"]) - np.mean(accuracies["a"]))
    said = capsys.readouterr().out
    assert f"{np.mean(accuracies['a']):.2%} ± {100 * np.std(accuracies['a'], ddof=1):.2f}" in said
    assert "B is better than A by" in said


def test_a_checkpoint_that_was_changed_since_its_test_is_said(trained, tmp_path, capsys):
    folders = [shutil.copytree(trained / number, tmp_path / "digits" / number) for number in ("1", "2")]
    assert compare(tmp_path, *folders)[1]["notes"] == []
    file = folders[1] / "checkpoints/best.ckpt"
    content = torch.load(file, weights_only=True)
    next(iter(content["state_dict"].values())).add_(1)
    torch.save(content, file)
    capsys.readouterr()
    (note,) = compare(tmp_path, *folders)[1]["notes"]
    assert note in capsys.readouterr().out
    for part in (str(file), "changed", f"imgrec evaluate {folders[1]}"):
        assert part in note
    file.write_bytes(b"PK")
    assert compare(tmp_path, *folders)[1]["notes"] == [note]
    file.unlink()  # to save disk space
    assert compare(tmp_path, *folders)[1]["notes"] == []


def test_the_same_seed_twice_is_no_pair_of_seeds(tmp_path):
    _, found = compare(tmp_path, run(tmp_path / "n/1", 0.9), run(tmp_path / "n/2", 0.8, seed=1))
    assert [entry["seeds"] for entry in found["runs"]] == [[0], [0]]
    assert found["keys"] == {}


def test_images_are_matched_by_their_path_in_data_root(tmp_path):
    true, first = labels(0.8, 0)
    _, second = labels(0.9, 1)
    names = [f"{label}/{number}.png" for number, label in enumerate(true)]
    order = np.random.default_rng(0).permutation(100)[:60]
    changed = true.copy()
    changed[:3] = (true[:3] + 1) % 4
    one = write_run(
        tmp_path / "n/1", true=true, predicted=first, images=[f"here/{name}" for name in names], settings={"data.root": "here"}
    )
    two = write_run(
        tmp_path / "n/2",
        true=changed[order],
        predicted=second[order],
        images=[f"/there/{names[row]}" for row in order],
        settings={"data.root": "/there/", "optim.lr": 0.1},
    )
    rows, relabelled = shared_images([read_run(path, "runs").comparable for path in (one, two)])
    kept = sorted(set(order.tolist()) - {0, 1, 2})
    assert rows[0].tolist() == kept
    assert order[rows[1]].tolist() == kept
    assert relabelled == 60 - len(kept)
    _, found = compare(tmp_path, one, two)
    (against,) = found["comparisons"]
    assert against["accuracy"][0] == pytest.approx(
        accuracy_score(true[kept], second[kept]) - accuracy_score(true[kept], first[kept])
    )
    assert f"on the {len(kept)} images" in against["sentence"]


def test_images_of_a_table_are_matched_by_their_path_beside_it(tmp_path):
    true, predicted = labels(0.8, 0)
    tables = {"n/1": ("here/t.csv", "here"), "n/2": ("t.csv", "."), "n/3": ("/there/all.csv", "/there")}
    runs = [
        write_run(
            tmp_path / name,
            true=true,
            predicted=predicted,
            images=[f"{folder}/{number}.png" for number in range(100)],
            settings={"data.file": file, "data.root": None},
        )
        for name, (file, folder) in tables.items()
    ]
    shared = shared_images([read_run(path, "runs").comparable for path in runs])
    assert [rows.tolist() for rows in shared.rows] == [list(range(100))] * 3


def extended(folder):
    """The run, as one of imgrec extend."""
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"extended": {"parent": "runs/a/1"}}))
    return folder


OTHERS = {
    "other labels at the same index": lambda folder: write_run(folder, true=np.arange(100) % 4, predicted=np.arange(100) % 4),
    "other names": lambda folder: write_run(folder, true=[0, 3], predicted=[0, 3], images=["a", "b"]),
    "other classes": lambda folder: write_run(folder, true=[0, 1], predicted=[1, 1]),
    "extended": lambda folder: extended(write_run(folder, true=[0, 1], predicted=[1, 1])),
    "no table": lambda folder: (run(folder, 0.9, settings={"optim.lr": 1.0}) / "predictions.parquet").unlink() or folder,
    "unfinished": lambda folder: run(folder, 0.9, finished=False),
    "no test": lambda folder: run(folder, 0.9, test=False),
}
SAID = {
    "other labels at the same index": "B was tested on other images than A",
    "other names": "B was tested on other images than A",
    "other classes": "B has other classes than A (2 and 4)",
    "extended": "B has other classes than A (2 and 4): their figures do not compare. The report of B",
    "no table": "B has no predictions.parquet",
    "unfinished": "B is not finished",
    "no test": "B has no test split",
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_run_without_common_images_has_its_figures_and_a_reason(case, tmp_path, capsys):
    code, found = compare(tmp_path, run(tmp_path / "n/1", 0.8, settings={"optim.lr": 0.5}), OTHERS[case](tmp_path / "n/2"))
    assert code == 0
    assert found["comparisons"] == []
    assert [note.startswith(SAID[case]) for note in found["notes"]] == [True]
    said = capsys.readouterr().out
    assert f"\n{found['notes'][0]}\n" in said
    untested = case in ("unfinished", "no test")  # then the best validation stands for the test
    assert ("best val/accuracy" in said, said.count("75.00%")) == (untested, 2 * untested)
    assert not (tmp_path / "compare.png").exists()


REFUSED = {
    "": ("runs=null", "two", "imgrec compare runs/NAME/1 runs/NAME/2"),
    "n/1": ("runs=n/1", "two", "imgrec compare runs/NAME/1 runs/NAME/2"),
    "no/*/": ("runs=no/*", "runs/NAME/ID"),
    "n/1 ./n/1/": ("runs=n/1", "twice", "Remove one"),
    "n/1 n": ("runs=n", "n/*/"),
    "n/1 none": ("runs=none", "runs/NAME/ID"),
    "n/2 baseline=none": ("baseline=none", "runs/NAME/ID"),
    "n/1 n/2/result.json": ("runs=n/2/result.json", "Type n/2"),
    "n/1 photos": ("runs=photos", "runs/NAME/ID"),
    "n/1 n/2 out=x.txt": ("out=x.txt", ".json", "out=x.json"),
    "n/1 n/2 out=mine.json": ("out=mine.json", "did not write it", "overwrite=true"),
    "n/1 n/2 plot=x.jpg": ("plot=x.jpg", ".png", "plot=x.png"),
    "n/1 n/2 resamples=0": ("resamples=0", "100 or more"),
    "n/1 n/cut_result": ("n/cut_result/result.json", "Remove it"),
    "n/1 n/no_figures": ("n/no_figures/result.json", "test.accuracy", "Remove it"),
    "n/1 n/cut_config": ("n/cut_config/config.yaml", "Leave n/cut_config out"),
    "n/1 n/cut_metrics": ("n/cut_metrics/metrics.csv", "Remove it"),
    "n/1 n/cut_table": ("n/cut_table/predictions.parquet", "Remove it"),
    "n/1 n/other_table": ("n/other_table/predictions.parquet", "class", "Remove it"),
    "n/1 n/strange_classes": ("n/strange_classes/predictions.parquet", "classes", "Remove it"),
}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A folder with runs n/1 and n/2, damaged copies, and files that are not ours."""
    folder = tmp_path_factory.mktemp("damaged")
    first = run(folder / "n/1", 0.8)
    run(folder / "n/2", 0.9, seed=1)
    (folder / "photos").mkdir()
    (folder / "mine.json").write_text("{}")
    for name, file, content in (
        ("cut_result", "result.json", (first / "result.json").read_bytes()[:100]),
        ("no_figures", "result.json", b'{"summary": "", "best": null, "last": {}, "test": {}, "train_seconds": 1.0}'),
        ("cut_config", "config.yaml", b"a: ["),
        ("cut_metrics", "metrics.csv", b"epoch,val/loss\n1,\xff\n"),
        ("cut_table", "predictions.parquet", (first / "predictions.parquet").read_bytes()[:-9]),
    ):
        shutil.copytree(first, folder / "n" / name)
        (folder / "n" / name / file).write_bytes(content)
    for name, columns in (
        ("other_table", {"class": ["a"], "true": ["0"], "predicted": ["0"]}),
        ("strange_classes", {"index": np.arange(1), "true": ["cat"], "predicted": ["0"]}),
    ):
        shutil.copytree(first, folder / "n" / name)
        write_table(folder / "n" / name / "predictions.parquet", [columns])
    return folder


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_no_run_is_refused_in_a_line(words, damaged, monkeypatch, capsys):
    monkeypatch.chdir(damaged)
    assert cli.main(["compare", *words.split()]) == 2
    assert_refused(capsys.readouterr().err, *REFUSED[words])
    assert not (damaged / "compare.json").exists()


def sentence(value, low, high, p, **more):
    fields = {"images": 100, "tested": 100, "relabelled": 0, "macro_f1": None, "only": None}
    return comparison_sentence(Comparison("B", "A", accuracy=(value, low, high), p=p / 2, corrected_p=p, **fields | more))


def test_sentences():
    assert sentence(0.012, 0.003, 0.021, 0.0078) == "B is better than A by 1.2 points (0.3 to 2.1), p = 0.0078"
    assert sentence(-0.012, -0.021, -0.003, 0.0002) == "B is worse than A by 1.2 points (0.3 to 2.1), p < 0.001"
    assert sentence(0.001, -0.006, 0.008, 0.9) == "no difference shown between B and A: +0.1 points (-0.6 to 0.8), p = 0.9"
    assert sentence(0, -0.0001, 0, 1) == "no difference shown between B and A: 0.0 points (0.0 to 0.0), p = 1"
    assert sentence(0.012, 0.003, 0.021, 0.05, macro_f1=(0.01, -0.001, 0.02), tested=120, relabelled=1) == (
        "B is better than A by 1.2 points (0.3 to 2.1), p = 0.05; macro F1 +1.0 (-0.1 to 2.0); "
        "on the 100 images that all of them were tested on; 1 image with another class left out"
    )
    assert sentence(0.0004, 0.0001, 0.0007, 0.01, images=50_000, tested=50_000).startswith("B is better than A by 0.04 points")


def test_letters_and_names():
    assert [letters(704)[number] for number in (0, 25, 26, 51, 52, 701, 702)] == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]
    assert entry_name(["runs/1"]) == "runs/1"
    assert entry_name([f"runs/{number}" for number in range(9)]) == "runs/{0,1,...,8}"
    assert entry_name(["a/1", "b/1"]) == "a/1, b/1"


def test_keys_that_follow_from_another_network_or_optimizer_are_not_shown():
    values = {
        "optim._target_": ["torch.optim.SGD", "torch.optim.Adam"],
        "optim.betas": [None, [0.9, 0.999]],
        "optim.lr": [0.1, 0.01],
    }
    assert main_values(values) == {"optim": ["SGD", "Adam"], "optim.lr": ["0.1", "0.01"]}
    assert main_values({"optim.momentum": [None, 0.9]}) == {"optim.momentum": ["null", "0.9"]}


def test_the_picture_shows_each_run_of_an_entry_in_its_colour(monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: drawn.append(figure))
    lines = [[([1, 2, 3, 4], [0.1, 0.8, 0.9, 0.91]), ([1, 2], [0.2, 0.7])], [([1, 2, 3, 4], [0.3, 0.7, 0.8, 0.85])], [([], [])]]
    losses = [[([1, 2], [2.0, 0.1])], [([1, 2], [1.0, 0.5])], []]
    draw_curves({"validation accuracy": lines, "validation loss": losses}, ["A  a/1: $x_0$", "B  日本", "C  c"])
    (figure,) = drawn
    accuracy, loss = figure.axes
    shown = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in accuracy.lines]
    assert shown == [tuple(map(list, line)) for each in lines for line in each]
    colors = [line.get_color() for line in accuracy.lines]
    assert colors[0] == colors[1] != colors[2]
    assert [handle.get_color() for handle in figure.legends[0].get_lines()] == [*colors[1:3], colors[3]]
    assert 0.1 < accuracy.get_ylim()[0] < 0.7  # the first epochs are cut off, the later ones are not
    assert (accuracy.get_yscale(), loss.get_yscale()) == ("linear", "log")
    assert [text.get_text()[0] for text in figure.legends[0].get_texts()] == ["A", "B", "C"]
    assert figure.get_facecolor() == (1, 1, 1, 1)
