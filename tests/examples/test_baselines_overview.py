"""Curves along a flag, other decisions as arms of their own, and many results at a glance."""

import json
from pathlib import Path

import numpy as np
import pytest
from baselines.curves import curve_points, curve_tables, draw_curves
from baselines.decisions import decided_at, other_decision, with_posterior
from baselines.overview import compare, holm, overview_table
from baselines.recipe import Recipe
from test_baselines_report import BASELINE, make_records, of_test
from toy_texts import run_baselines


def with_other_decisions(records):
    """Whose model is right about every example when it decides at balanced."""
    for record in of_test(records):
        of_posterior = {"negative_log_likelihood": 0.25, "accuracy": 0.5}
        record["other_decisions"] = {
            "most_likely": {"metrics": of_posterior, "predictions": record["predictions"]},
            "balanced": {"metrics": record["metrics"] | {"f1_macro": 1.0}, "predictions": record["labels"]},
        }
    return records


def along(records_of_value):
    """As a recipe with `along` writes them."""
    found = []
    for value, records in records_of_value.items():
        for record in records:
            arm, flags = f"{record['arm']}, {value}", [*record["flags"], "--num_train_epochs", str(value)]
            point = {"loss": record["arm"], "along": "num_train_epochs", "value": value}
            found.append(record | point | {"arm": arm, "flags": flags})
    return found


class TestOtherDecisions:
    def test_are_arms_of_their_own(self):
        records = with_other_decisions(make_records())
        found = decided_at(records, "balanced", [BASELINE])
        assert [(record["arm"], record["seed"]) for record in found] == [
            (f"{BASELINE}, at balanced", k) for k in (1, 2, 3)
        ]
        assert all(record["predictions"] == record["labels"] for record in found)
        assert (
            decided_at(records, "thresholds", [BASELINE]) == [] == decided_at(make_records(), "balanced", [BASELINE])
        )

    def test_several_labels_are_compared_as_trained(self, tmp_path, capsys):
        records = make_records(multi_label=True)
        for record in of_test(records):
            as_trained = {"metrics": record["metrics"], "predictions": record["labels"]}
            record["other_decisions"] = {"as_trained": as_trained, "balanced": as_trained}
        assert (other_decision(records), other_decision(make_records())) == ("as_trained", "balanced")
        (tmp_path / "results.jsonl").write_text("\n".join(map(json.dumps, records)))
        run_baselines("report", tmp_path / "results.jsonl")
        parts = capsys.readouterr().out.split("| loss | seeds | micro-F1 |")[1:]
        tables = [part.split("Mean difference")[0] for part in parts]
        assert len(tables) == 2 and all(", at as\\_trained |" in table and "balanced" not in table for table in tables)

    def test_probabilities_are_those_of_the_posterior_and_decisions_as_they_were(self):
        records = with_other_decisions(make_records())
        for before, record in zip(of_test(records), of_test(with_posterior(records))):
            assert record["metrics"]["negative_log_likelihood"] == 0.25
            assert record["metrics"]["accuracy"] == before["metrics"]["accuracy"] != 0.5


class TestOverview:
    def test_curves_are_refused(self):
        with pytest.raises(ValueError, match="two: expected losses to compare, but got curves"):
            compare({"one": make_records(), "two": along({1: make_records()})})

    def test_what_is_right_everywhere_is_first_and_bold(self):
        table = compare({"one": with_other_decisions(make_records()), "two": with_other_decisions(make_records())})
        assert {*table["dataset"]} == {"one", "two", "all"}
        best = table[table["arm"] == "cross entropy, at balanced"]
        assert (best["low"] > 0).all() and (best["holm"] < 0.05).all()
        f1 = np.mean([record["metrics"]["f1_macro"] for record in of_test(make_records([BASELINE]))])
        assert best["difference"].tolist() == pytest.approx([1 - f1] * 3)
        first_row = overview_table(table).splitlines()[2]
        assert first_row.startswith("| cross entropy, at balanced | **+0.") and first_row.count("**") == 6

    def test_a_loss_that_is_the_baseline_is_told_from_nothing(self):
        records = make_records([BASELINE])
        copies = [record | {"arm": "copy"} for record in records]
        table = compare({"one": records + copies})
        assert (
            table[["difference", "p", "holm"]].values.tolist() == [[0, 1, 1]]
            and "**" not in overview_table(table).split("\n\n")[0]
        )

    def test_holm(self):
        """Of 4 values the smallest times 4, the next times 3, and so on, never smaller than the one before."""
        assert holm([0.04, 0.01, 0.03, 0.9]) == pytest.approx([0.09, 0.04, 0.09, 0.9])

    def test_the_order_of_the_records_does_not_matter(self):
        """Two sweeps that share a folder finish in any order."""
        records = with_other_decisions(make_records())
        turned = [record for arm in ("focal", BASELINE) for record in records if record["arm"] == arm]
        assert turned[0]["arm"] == "focal"
        found, expected = compare({"one": turned}), compare({"one": records})
        assert found.set_index("arm")["difference"].to_dict() == expected.set_index("arm")["difference"].to_dict()
        with pytest.raises(ValueError, match="one: expected an arm 'cross entropy'"):
            compare({"one": make_records(["focal", "other"])})

    def test_over_all_are_those_that_all_have(self):
        table = compare({"one": make_records(), "two": make_records([BASELINE, "other"])})
        assert "all" not in {*table["dataset"]}

    def test_command(self, capsys):
        for name in ("one", "two"):
            Path("results", name).mkdir(parents=True)
            lines = [json.dumps(record) for record in with_other_decisions(make_records())]
            Path("results", name, "results.jsonl").write_text("\n".join(lines))
        run_baselines("report", "results/one/results.jsonl", "results/two/results.jsonl")
        assert "| cross entropy, at balanced |" in capsys.readouterr().out
        assert Path("results/overview.png").read_bytes().startswith(b"\x89PNG")


class TestCurves:
    def records(self):
        of_value = {1: make_records(), 4: with_other_decisions(make_records(seeds=(1, 2)))}
        return along(of_value)

    def test_points(self):
        points = curve_points(self.records())["f1_macro"]
        assert {
            loss: {value: len(seeds) for value, seeds in of_values.items()} for loss, of_values in points.items()
        } == {
            BASELINE: {1: 3, 4: 2},
            "focal": {1: 3, 4: 2},
            f"{BASELINE}, at balanced": {4: 2},
        }
        expected = [record["metrics"]["f1_macro"] for record in of_test(make_records(["focal"]))]
        assert curve_points(self.records()[::-1])["f1_macro"].keys() == points.keys()
        assert points[f"{BASELINE}, at balanced"][4] == [1.0, 1.0] and points["focal"][1] != expected

    def test_tables_and_picture(self):
        draw_curves(self.records(), Path("curves.png"))
        assert Path("curves.png").stat().st_size > 1000
        table = curve_tables(self.records())
        assert "| macro-F1 by num train epochs | 1 | 4 |" in table
        assert "| cross entropy, at balanced | – | 1.000 ± 0.000 |" in table
        assert "were chosen" not in table and "Not tested yet" not in table  # a grid of one value

    def test_what_was_tried_and_what_is_missing(self):
        records = [record for record in self.records() if record["stage"] == "validation" or record["value"] == 1]
        of_another_rate = {"choice": {"learning_rate": 1e-3}, "seed": 1}
        note = curve_tables([*records, records[0] | of_another_rate]).splitlines()[-1]
        assert "chosen on the validation split for each loss and num train epochs, from lr 2e-4; lr 1e-3." in note
        assert "Not tested yet: cross entropy, 4; focal, 4." in note

    def test_records_of_one_value_have_to_be_of_the_same_data(self):
        records = self.records()
        records[3]["data_fingerprint"] = "b2"
        with pytest.raises(ValueError, match="data_fingerprint"):
            curve_tables(records)

    def test_command(self, capsys):
        Path("results.jsonl").write_text("\n".join(map(json.dumps, self.records())))
        run_baselines("report", "results.jsonl")
        assert "by num train epochs" in capsys.readouterr().out


class TestRecipe:
    def test_along_is_an_arm_for_each_value(self, tmp_path):
        lines = [
            "title: t",
            "flags: {train_file: a.csv}",
            "seeds: [1]",
            "along: {num_train_epochs: [1, 4]}",
            "arms: {cross entropy: {loss: cross_entropy}}",
        ]
        (tmp_path / "r.yaml").write_text("\n".join(lines))
        recipe = Recipe.load(tmp_path / "r.yaml")
        assert [*recipe.arms] == ["cross entropy, num_train_epochs 1", "cross entropy, num_train_epochs 4"]
        arm = "cross entropy, num_train_epochs 4"
        assert recipe.point(arm) == {"loss": "cross entropy", "along": "num_train_epochs", "value": 4}
        flags = recipe.cell_flags(arm, {}, 1)
        assert flags[flags.index("--num_train_epochs") + 1] == "4"
        with pytest.raises(ValueError, match="--num_train_epochs: the arms of the recipe set it"):
            recipe.with_flags({"num_train_epochs": "2"})
