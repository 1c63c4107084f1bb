"""The report of a baseline sweep, against scikit-learn on data that are really resampled."""

import json
import re
import warnings
from copy import deepcopy

import numpy as np
import pytest
from baselines import report
from sklearn.metrics import balanced_accuracy_score, f1_score, matthews_corrcoef
from toy_texts import markdown_rows, run_baselines

from hf_focal.evaluation import decision_metrics
from hf_focal.metrics import ImbalancedClassification, class_groups


BASELINE = "cross entropy"


def make_records(arms=(BASELINE, "focal"), seeds=(1, 2, 3), multi_label=False, num_classes=6, num_examples=120):
    """Records of cells whose logits know the class more or less, with a class that is not in the test split."""
    random, counts = np.random.default_rng(0), [300, 150, 60, 30, 9, 4][:num_classes]
    if multi_label:
        labels = (random.random((num_examples, num_classes)) < 0.3) * (np.arange(num_classes) < num_classes - 1)
    else:
        labels = random.integers(num_classes - 1, size=num_examples)
    truth = labels if multi_label else np.eye(num_classes, dtype=int)[labels]
    records = []
    for number, arm in enumerate(arms):
        for seed in seeds:
            logits = (1 + number / 2) * (2 * truth - 1) + random.normal(size=truth.shape) * 1.5
            metric = ImbalancedClassification("multilabel" if multi_label else None)
            metrics = metric.compute(predictions=logits, references=labels, label_counts=counts)
            metrics.pop("per_class")
            shared = {
                "recipe": "toy",
                "arm": arm,
                "seed": seed,
                "choice": {"learning_rate": 2e-4},
                "data_fingerprint": "a1",
                "flags": ["--loss", arm, "--seed", str(seed)],
                "versions": {"torch": "2"},
                "shared_flags": {"metric_for_best_model": "f1_macro"},
                "validation_metrics": {"f1_macro": 0.5},
            }
            cell = {
                "metrics": metrics,
                "labels": [np.flatnonzero(row).tolist() for row in truth] if multi_label else labels.tolist(),
                "predictions": [np.flatnonzero(row > 0).tolist() for row in logits]
                if multi_label
                else logits.argmax(1).tolist(),
                "label_names": [f"class {k}" for k in range(num_classes)],
                "label_counts": counts,
                "wall_seconds": 60.0 * seed,
                "resumed": False,
            }
            records.append({**shared, "stage": "validation"})
            records.append({**shared, "stage": "test", **cell})
    return records


def of_test(records):
    return [record for record in records if record["stage"] == "test"]


def indicator(ids, num_classes):
    rows = np.zeros((len(ids), num_classes), int)
    for row, found in zip(rows, ids):
        row[found] = 1
    return rows


def macro_f1(labels, guesses):
    classes = {*labels.tolist(), *guesses.tolist()}
    hits = [((labels == k) & (guesses == k)).sum() for k in classes]
    return np.mean([2 * hit / ((labels == k).sum() + (guesses == k).sum()) for k, hit in zip(classes, hits)])


def weighted_metrics(truth, guess, weights, groups, multi_label):
    return decision_metrics(*(rows.T @ weights for rows in (truth, guess, truth * guess)), groups, multi_label)


@pytest.mark.parametrize("multi_label", [False, True])
class TestDecisionMetrics:
    def test_unweighted_are_those_of_the_records(self, multi_label):
        for record in of_test(make_records(multi_label=multi_label)):
            truth, guess = (report.indicators(record[key], 6) for key in ("labels", "predictions"))
            groups = class_groups(record["label_counts"])
            found = weighted_metrics(truth, guess, np.ones((120, 1)), groups, multi_label)
            assert found.keys() >= {"f1_macro", "f1_head", "f1_mid", "f1_tail"} and len(found) == 7 - 2 * multi_label
            assert {name: value.item() for name, value in found.items()} == pytest.approx(
                {name: record["metrics"][name] for name in found}, abs=1e-12
            )

    def test_weights_are_repetitions(self, multi_label):
        record = of_test(make_records(multi_label=multi_label, num_examples=25))[0]
        truth, guess = (indicator(record[key], 6) for key in ("labels", "predictions"))
        weights = np.random.default_rng(1).multinomial(25, [1 / 25] * 25, 20).T
        groups = class_groups(record["label_counts"])
        arrays = (report.indicators(record[key], 6) for key in ("labels", "predictions"))
        found = weighted_metrics(*arrays, weights, groups, multi_label)
        for b, repeats in enumerate(weights.T):
            y, p = (np.repeat(rows, repeats, axis=0) for rows in (truth, guess))
            f1, occurs = f1_score(y, p, average=None, zero_division=0), (y | p).any(0)
            expected = {"f1_macro": f1.mean() if multi_label else f1[occurs].mean()}
            for group, classes in groups.items():
                own = [f1[k] for k in classes if occurs[k]]
                expected[f"f1_{group}"] = np.mean(own) if own else np.nan
            if multi_label:
                expected["f1_micro"] = f1_score(y, p, average="micro")
            else:
                y, p = y.argmax(1), p.argmax(1)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that a class occurs in the predictions alone
                    expected["balanced_accuracy"] = balanced_accuracy_score(y, p)
                expected |= {"accuracy": (y == p).mean(), "matthews_correlation": matthews_corrcoef(y, p)}
            assert {name: values[b] for name, values in found.items()} == pytest.approx(
                expected, abs=1e-12, nan_ok=True
            )


def test_one_class_only():
    rows = report.indicators([0, 0], 2)
    found = weighted_metrics(rows, rows, np.ones((2, 1)), {"head": [0], "mid": [], "tail": [1]}, False)
    assert found["matthews_correlation"] == 0 and found["f1_macro"] == found["f1_head"] == 1
    assert np.isnan([found["f1_mid"], found["f1_tail"]]).all()


@pytest.mark.parametrize("ids", [[0, 6], [0, -100], [[0], [1, -1]]])
def test_ids_that_are_no_classes(ids):
    with pytest.raises(ValueError, match="index"):
        report.indicators(ids, 6)


class TestDifferences:
    def test_against_a_plain_loop(self):
        """The same hierarchical bootstrap as two loops over really repeated examples."""
        records = make_records()
        found = report.differences(records, BASELINE).set_index("metric")
        labels, random = np.array(of_test(records)[0]["labels"]), np.random.default_rng(5)
        guesses = {(r["arm"], r["seed"]): np.array(r["predictions"]) for r in of_test(records)}
        gaps = []
        for _ in range(1500):
            drawn, seeds = random.integers(120, size=120), random.integers(1, 4, size=3)
            scores = [[macro_f1(labels[drawn], guesses[arm, s][drawn]) for s in seeds] for arm in ("focal", BASELINE)]
            gaps.append(np.mean(scores[0]) - np.mean(scores[1]))
        macro, spread = found.loc["f1_macro"], np.std(gaps)
        assert [macro["low"], macro["high"]] == pytest.approx(np.quantile(gaps, [0.025, 0.975]), abs=0.25 * spread)
        by_arm = {arm: [r["metrics"] for r in of_test(records) if r["arm"] == arm] for arm in (BASELINE, "focal")}
        for metric, row in found.iterrows():
            means = {arm: np.mean([m[metric] for m in cells]) for arm, cells in by_arm.items()}
            assert row["difference"] == pytest.approx(means["focal"] - means[BASELINE], abs=1e-12)
            assert row["low"] < row["difference"] < row["high"]

    @pytest.mark.parametrize("multi_label", [False, True])
    def test_identical_arms_do_not_differ(self, multi_label):
        records = make_records([BASELINE], multi_label=multi_label)
        records += [{**record, "arm": "twin"} for record in records]
        found = report.differences(records, BASELINE, replicates=200)
        assert len(found) == (3 if multi_label else 5)
        assert (found[["difference", "low", "high"]] == 0).all(axis=None)
        assert "**+" not in report.difference_table(records, BASELINE, replicates=200)

    def test_pairs_by_seed(self):
        """Arms that differ by the same in every seed: paired with another seed, they differ by more or less."""
        records = make_records([BASELINE], num_examples=2000)
        for record in of_test(records):
            # Seeds 1, 2, 3 are right in all but 300, 600, 900 of the examples; the other arm in 20 more.
            wrong = np.arange(2000) < 300 * record["seed"]
            record["predictions"] = ((np.array(record["labels"]) + wrong) % 5).tolist()
        other = deepcopy(records)
        for record in of_test(other):
            record["arm"] = "better"
            start = 300 * record["seed"] - 20
            record["predictions"][start : start + 20] = record["labels"][start : start + 20]
        paired = report.differences(records + other, BASELINE, replicates=500).set_index("metric").loc["accuracy"]
        for record in other:
            record["seed"] = record["seed"] % 3 + 1
        crossed = report.differences(records + other, BASELINE, replicates=500).set_index("metric").loc["accuracy"]
        assert paired["difference"] == pytest.approx(0.01) == crossed["difference"]
        assert 0.005 < paired["low"] < paired["high"] < 0.015
        assert crossed["low"] < -0.1 and crossed["high"] > 0.1

    def test_test_examples_vary_too(self):
        """Of one seed, the interval is that of the mean over the examples."""
        records = make_records(seeds=[7])
        found = report.differences(records, BASELINE, replicates=4000).set_index("metric").loc["accuracy"]
        labels, base, focal = (
            np.array(r) for r in (of_test(records)[0]["labels"], *(t["predictions"] for t in of_test(records)))
        )
        gaps = (focal == labels).astype(float) - (base == labels)
        assert found["seeds"] == 1 and found["difference"] == pytest.approx(gaps.mean())
        assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * gaps.std() / 120**0.5, rel=0.1)

    def test_common_seeds_alone_count(self):
        records = make_records([BASELINE, "focal", "late"])
        expected = report.differences(records, BASELINE, replicates=50)
        kept = [r for r in records if r["arm"] != "late" or r["seed"] == 2]
        extra = {**of_test(records)[-1], "seed": 9}
        found = report.differences([*kept, extra], BASELINE, replicates=50)
        assert found["seeds"].tolist() == [3] * 5 + [1] * 5
        # What is drawn for an arm depends on no other arm, and on no other call.
        assert found[:5].equals(expected[:5])
        only_extra = [r for r in kept if r["arm"] == BASELINE] + [extra]
        assert "No loss shares a seed with cross entropy" in report.difference_table(only_extra, BASELINE)


class TestTables:
    def test_report(self):
        records = make_records()
        shown = markdown_rows(report.report_table(records, BASELINE)).set_index("loss")
        assert shown.index.tolist() == ["cross entropy (baseline)", "focal"]
        assert shown.columns.tolist() == [
            *("settings", "seeds", "accuracy", "balanced accuracy", "macro-F1", "MCC", "head F1", "mid F1", "tail F1"),
            *("NLL", "Brier", "ECE", "ECE floor", "minutes"),
        ]
        values = [r["metrics"]["f1_macro"] for r in of_test(records) if r["arm"] == "focal"]
        half = 4.302653 * np.std(values, ddof=1) / 3**0.5  # the quantile of Student's t with 2 degrees of freedom
        assert shown.loc["focal", "macro-F1"] == f"{np.mean(values):.3f} ± {half:.3f}"
        assert shown.loc["focal", ["settings", "seeds", "minutes"]].tolist() == ["lr 2e-4", "3", "2.0 ± 2.5"]

    def test_classes_that_nothing_was_chosen_for_are_named(self):
        records = [record | {"classes_without_validation": ["a_b", "c"]} for record in make_records()]
        assert "so without influence on the choice: a\\_b, c." in report.report_table(records, BASELINE)
        assert "too rare" not in report.report_table(make_records(), BASELINE)

    def test_time_of_a_resumed_training_is_left_out(self):
        records = make_records()
        for record in records:
            if record["stage"] == "test":
                record["resumed"] = record["arm"] == BASELINE or record["seed"] == 1
        shown = markdown_rows(report.report_table(records, BASELINE)).set_index("loss")
        assert shown["minutes"].tolist() == ["–", "2.5 ± 6.4"]  # of seeds 2 and 3

    def test_multi_label(self):
        records = make_records(multi_label=True)
        columns = markdown_rows(report.report_table(records, BASELINE)).columns
        assert {"micro-F1", "macro-F1", "macro-AP", "tail F1"} <= {*columns} and not {"MCC", "balanced accuracy"} & {
            *columns
        }
        shown = markdown_rows(report.difference_table(records, BASELINE, replicates=100))
        assert shown.columns.tolist() == ["loss", "seeds", "micro-F1", "macro-F1", "tail F1"]
        report.draw(records, BASELINE, "picture.png")

    def test_bold_is_what_excludes_0(self):
        text = report.difference_table(make_records([BASELINE, "focal", "third"]), BASELINE)
        cells = [cell for row in markdown_rows(text).values for cell in row[2:]]
        assert len(cells) == 10
        for cell in cells:
            low, high = map(float, re.search(r"\[(.+), (.+)\]", cell).groups())
            assert cell.startswith("**") == (low > 0 or high < 0)
        assert "2,000 bootstrap replicates" in text and "over the seeds that both losses have" in text

    def test_one_seed_is_a_number(self):
        records = [r for r in make_records() if r["arm"] == BASELINE or r["seed"] == 1]
        shown = markdown_rows(report.report_table(records, BASELINE))
        assert shown["seeds"].tolist() == ["3", "1"]
        assert "±" in shown["MCC"][0] and re.fullmatch(r"0\.\d{3}", shown["MCC"][1])
        report.draw(records, BASELINE, "picture.png")

    def test_no_tail(self):
        """Balanced training data have neither head nor tail; a record may also lack the tail alone."""
        records = make_records()
        for record in of_test(records):
            record["label_counts"] = [50] * 6
            record["metrics"] = {
                k: v for k, v in record["metrics"].items() if k not in ("f1_head", "f1_mid", "f1_tail")
            }
        shown = report.report_table(records, BASELINE) + report.difference_table(records, BASELINE, replicates=50)
        assert "tail" not in shown and "nan" not in shown
        report.draw(records, BASELINE, "picture.png")
        records = make_records()
        for record in of_test(records)[:3]:
            record["metrics"].pop("f1_tail")
        assert markdown_rows(report.report_table(records, BASELINE))["tail F1"][0] == "–"
        report.draw(records, BASELINE, "picture.png")

    def test_a_tail_that_does_not_occur(self):
        records = make_records()
        for record in of_test(records):
            for key in ("labels", "predictions"):
                record[key] = [k % 4 for k in record[key]]  # of the classes 4 and 5, which are the tail, none is left
        found = report.differences(records, BASELINE, replicates=50)
        assert "f1_tail" not in set(found["metric"]) and not found.isna().any(axis=None)

    def test_settings(self):
        assert report.settings({"learning_rate": 0.00025, "focal_gamma": 2.0}) == r"lr 2.5e-4, focal\_gamma 2.0"
        assert report.settings({}) == "–" and report.settings({"learning_rate": "1e-5"}) == "lr 1e-5"

    def test_hostile_names(self):
        names = ["a | b\nc", "**x** <b> `|` $\\frac{1$ [l](u)", "long " * 30]
        records = make_records(names, seeds=[1, 2])
        texts = [report.report_table(records, names[0]), report.difference_table(records, names[0], replicates=50)]
        for text in texts:
            lines = [line for line in text.splitlines() if line.startswith("|")]
            assert len({line.count("|") for line in lines}) == 1
            assert "<b>" not in text and r"\*\*x\*\*" in text and r"\`&#124;\`" in text and "a &#124; b c" in text
        assert len(lines) == 4
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            report.draw(records, names[0], "picture.png")


class TestInput:
    @pytest.mark.parametrize(
        "message, change",
        [
            ("expected records of the stage test, but got none among 6", lambda r: r.update(stage="validation")),
            (
                r"baseline: expected one of the tested arms \['other'\], but got 'cross",
                lambda r: r.update(arm="other"),
            ),
            ("one has no predictions", lambda r: r.pop("predictions")),
            ("expected one choice and one test of each seed", lambda r: r.update(seed=1)),
            ("expected one choice and one test", lambda r: r.update(choice={"learning_rate": r["seed"]})),
            (
                "'cross entropy': expected the same flags for all seeds",
                lambda r: r.update(flags=["--focal_gamma", str(r["seed"]), *r["flags"]]),
            ),
        ],
    )
    def test_bad_records(self, message, change):
        records = make_records([BASELINE])
        for record in of_test(records):
            change(record)
        with pytest.raises(ValueError, match=message):
            report.report_table(records, BASELINE)

    @pytest.mark.parametrize(
        "key, value",
        [
            ("data_fingerprint", "b2"),
            ("recipe", "r"),
            ("shared_flags", {"max_steps": "1"}),
            ("versions", {"torch": "3"}),
            ("model_fingerprint", "m2"),
            ("labels", [0, 1]),
            ("label_counts", [1] * 6),
        ],
    )
    def test_what_cannot_be_compared(self, key, value):
        records = make_records()
        records[-1][key] = value
        message = rf"{key}: expected .+ as in the first record, but 'focal', seed 3 has {re.escape(repr(value))}"
        for function in (
            report.report_table,
            report.difference_table,
            lambda *args: report.draw(*args, "picture.png"),
        ):
            with pytest.raises(ValueError, match=message):
                function(records, BASELINE)

    @pytest.mark.parametrize(
        "line, message",
        [
            ("1", "line 3: expected a record, but got '1'"),
            ("null", "line 3: expected a record, but got 'null'"),
            ("[]", r"line 3: expected a record, but got '\[\]'"),
            ("{}", "line 3: expected a record whose 'stage' is a str, but got None"),
            ("[" * 100_000 + "]" * 100_000, "line 3: expected a record"),
            (
                lambda record: record | {"arm": ["focal"]},
                r"line 3: expected a record whose 'arm' is a str, but got \['f",
            ),
            (lambda record: record, "lines 2 and 3: 'cross entropy', seed 1, stage 'test', are the same cell"),
            (lambda record: record | {"metrics": {"accuracy": 1.0}}, "lines 2 and 3: .* are the same cell"),
        ],
        ids=lambda case: case[:30] if isinstance(case, str) else "changed",
    )
    def test_lines_that_are_no_records(self, tmp_path, line, message):
        records = make_records()
        added = line if isinstance(line, str) else json.dumps(line(records[1]))
        file = tmp_path / "results.jsonl"
        file.write_text("\n".join([*map(json.dumps, records[:2]), added, *map(json.dumps, records[2:])]))
        with pytest.raises(ValueError, match=message):
            run_baselines("report", file)

    def test_a_file_that_is_too_large(self, tmp_path, monkeypatch):
        (tmp_path / "results.jsonl").write_text(json.dumps(make_records()[0]))
        monkeypatch.setattr("baselines.records.LARGEST_FILE", 100)
        with pytest.raises(ValueError, match="expected at most 100 bytes"):
            run_baselines("report", tmp_path / "results.jsonl")

    def test_predictions_of_other_examples(self):
        records = make_records()
        records[-1]["predictions"].pop()
        with pytest.raises(ValueError, match="shape"):
            report.differences(records, BASELINE)

    def test_command(self, tmp_path, capsys):
        """A torn line is skipped with a warning, also one that a later sweep has written behind."""
        whole = [json.dumps(record) for record in make_records()]
        file = tmp_path / "results.jsonl"
        file.write_text("\n".join([*whole[:3], whole[3][:50], *whole[3:], whole[0][:-1]]))
        with pytest.warns(UserWarning, match="expected a record") as warned:
            run_baselines("report", file)
        assert [re.search(r"line (\d+)", str(w.message))[1] for w in warned] == ["4", "14"]
        printed = capsys.readouterr().out
        for part in (report.report_table, report.difference_table):
            assert part(make_records(), BASELINE) in printed
        assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
        with pytest.raises(ValueError, match="baseline: expected one of the tested arms"), pytest.warns(UserWarning):
            run_baselines("report", file, "--baseline", "CE")
