"""Many runs, each with a record: what is done is not done again, and only complete arms are gathered."""

import argparse
import json
import os
from pathlib import Path

import pytest

from benchmarks.common.campaign import (
    add_options,
    check_records,
    gather,
    rounded,
    run_jobs,
    take_committed,
    unfinished,
)


def square(name: str, seed: int) -> dict:
    return {"arm": name, "seed": seed, "square": seed * seed, "seconds": {"all": 0.0}}


def fails(name: str, seed: int) -> dict:
    raise ArithmeticError(name)


def vanishes(name: str, seed: int) -> dict:
    os._exit(0)


def test_jobs_are_done_once(tmp_path, capsys):
    jobs = unfinished(["a", "b"], [1, 2], tmp_path)
    assert jobs == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    run_jobs(jobs[:3], square, tmp_path, processes=2)
    assert "3 of 3: " in capsys.readouterr().out
    assert json.loads((tmp_path / "a" / "2.json").read_text())["square"] == 4
    assert unfinished(["a", "b"], [1, 2], tmp_path) == [("b", 2)]
    run_jobs([], square, tmp_path)


def test_only_complete_arms_are_gathered(tmp_path):
    for arm, seeds in (("plain", (1, 2)), ("l1", (1,))):
        (tmp_path / arm).mkdir()
        for seed in seeds:
            (tmp_path / arm / f"{seed}.json").write_text(json.dumps({"arm": arm, "seed": seed}))
    assert gather(tmp_path, tmp_path / "results", ["plain", "l1", "other"], [1, 2]) == ["plain"]
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["plain.json"]
    text = (tmp_path / "results" / "plain.json").read_text()
    assert json.loads(text) == [{"arm": "plain", "seed": 1}, {"arm": "plain", "seed": 2}]


def test_committed_records_are_done(tmp_path):
    jobs = [("a", 1), ("a", 2)]
    run_jobs(jobs, square, tmp_path / "out")
    gather(tmp_path / "out", tmp_path / "results", ["a"], [1, 2])
    (tmp_path / "new" / "a").mkdir(parents=True)
    (tmp_path / "new" / "a" / "2.json").write_text("{}")
    take_committed(tmp_path / "results", tmp_path / "new")
    assert unfinished(["a"], [1, 2, 3], tmp_path / "new") == [("a", 3)]
    assert json.loads((tmp_path / "new" / "a" / "1.json").read_text())["square"] == 1
    assert (tmp_path / "new" / "a" / "2.json").read_text() == "{}"  # what is there stays


def test_a_job_that_fails_stops_all(tmp_path, capfd):
    with pytest.raises(SystemExit, match="a process failed"):
        run_jobs([("a", 1)], fails, tmp_path)
    assert "ArithmeticError" in capfd.readouterr().err
    assert not (tmp_path / "a").exists()


def test_processes_that_end_before_their_jobs_stop_all(tmp_path):
    with pytest.raises(SystemExit, match="all processes ended after 0 of 1 jobs"):
        run_jobs([("a", 1)], vanishes, tmp_path)


def test_committed_seeds_are_not_lost(tmp_path):
    run_jobs([("a", 1), ("a", 2)], square, tmp_path / "out")
    gather(tmp_path / "out", tmp_path / "results", ["a"], [1, 2])
    before = (tmp_path / "results" / "a.json").read_bytes()
    run_jobs([("a", 2), ("b", 2)], square, tmp_path / "new")
    with pytest.raises(SystemExit, match=r"a\.json also has the seeds 1, which would be lost"):
        gather(tmp_path / "new", tmp_path / "results", ["b", "a"], [2])
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["a.json"]
    assert (tmp_path / "results" / "a.json").read_bytes() == before


def test_records_of_other_settings_do_not_count_as_done(tmp_path):
    (tmp_path / "a").mkdir()
    record = {"arm": "a", "config": {"weight": 0.333333, "layers": ["x"], "device": "cpu"}}
    (tmp_path / "a" / "1.json").write_text(json.dumps(record))

    def expected(weight):
        return lambda name: {"arm": name, "config": {"weight": weight, "layers": ("x",)}}

    check_records(tmp_path, ["a", "b"], [1, 2], expected(1 / 3))
    with pytest.raises(
        SystemExit, match=r"1\.json is of a run with config\.weight 0\.333333, not 0\.5: move"
    ):
        check_records(tmp_path, ["a", "b"], [1, 2], expected(0.5))


def test_numbers_are_rounded_to_six_digits():
    assert rounded({"a": [1.23456789, 7, None], "b": "text"}) == {"a": [1.23457, 7, None], "b": "text"}


def test_options_name_arms_and_seeds():
    parser = argparse.ArgumentParser()
    add_options(parser, ["a", "b"], (1, 2), Path("out/x"))
    options = parser.parse_args(["--arms", "b", "--seeds", "3"])
    assert (options.arms, options.seeds, options.out, options.device) == (["b"], [3], Path("out/x"), "cpu")
    assert parser.parse_args([]).arms == ["a", "b"]
