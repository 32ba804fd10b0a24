"""The scorecard: what it gathers, what it refuses, and what it says of a folder later."""

import json

from volumetric.cli import UserError
from volumetric.collection import volumes_in
from volumetric.sidecars import write_trained_on

import nibabel as nib
import numpy as np
import pytest

from MedicalNet.verdicts import QUESTIONS
from tests.conftest import write_volume
from tests.test_trust import contents_in, volume_of, write_set
from trust import scorecard


def test_a_scorecard_gathers_and_verifies(tmp_path, capsys):
    verdict = {"question": QUESTIONS["realistic"], "answer": "No: blurred.", "state": "bad"}
    released = write_set(tmp_path / "released", range(3))
    write_volume(released / "v0_deviation.nii.gz", volume_of(5))  # a map, which is no volume
    contents = {"training": [], "generated": [*contents_in(released), "one", "two"]}
    numbers = {"metrics": {}, "verdicts": [verdict], "vessels": {"generated": 3}, "copies": []}
    numbers |= {"generated": {"n": 3}, "contents": {"generated": contents["generated"][:2]}}
    (tmp_path / "metrics.json").write_text(json.dumps(numbers), encoding="utf-8")
    record = {"verdict": "failed", "flagged": [{"content": "one"}, {"content": "two"}]}
    record |= {"n": {"generated": 10}, "contents": contents}
    (tmp_path / "replicas.json").write_text(json.dumps(record), encoding="utf-8")
    (tmp_path / "data.csv").write_text(
        "\ufeffdata set;licence;consent\nIXI;CC BY-SA 3.0;research\n", encoding="utf-8"
    )
    flags = {"released": released, "output": tmp_path / "card", "replicas": tmp_path / "replicas.json"}
    flags |= {"statement": tmp_path / "data.csv", "evaluation": tmp_path / "metrics.json"}
    scorecard.main([str(part) for name, value in flags.items() for part in (f"--{name}", value)])
    assert "3 of 7 criteria are measured" in capsys.readouterr().out
    page = (tmp_path / "card" / "report.html").read_text(encoding="utf-8")
    for part in (
        "replica gate failed, 2 of 10 flagged",
        "licence: CC BY-SA 3.0",
        "not measured",
        "No: blurred.",
        "Of these volumes were looked at: 2 in evaluation, 3 in replicas",
    ):
        assert part in page
    card = json.loads((tmp_path / "card" / "scorecard.json").read_text(encoding="utf-8"))
    assert list(card["fingerprint"]) == ["v0.nii.gz", "v1.nii.gz", "v2.nii.gz"]
    assert card["contents"] == {"released": contents_in(released)}
    check = ["--output", str(tmp_path / "card"), "--verify", str(released)]
    scorecard.main(check)
    assert "holds the 3 volumes" in capsys.readouterr().out
    (released / "v1.nii.gz").unlink()
    nib.save(nib.Nifti1Image(volume_of(9), np.eye(4)), released / "v0.nii.gz")
    with pytest.raises(SystemExit, match=r"v0\.nii\.gz is another file, and 1 more"):
        scorecard.main(check)
    with pytest.raises(SystemExit, match="has a scorecard"):
        scorecard.main([str(part) for name, value in flags.items() for part in (f"--{name}", value)])


@pytest.mark.parametrize("source", ["evaluation", "replicas", "membership", "turing", "segmentation"])
def test_what_every_program_saw_is_compared_with_the_release(tmp_path, source):
    """By content: programs that saw none of the volumes are refused, and so are gates that saw not all."""
    released, path = write_set(tmp_path / "released", range(3)), tmp_path / "made.json"
    contents, volumes = contents_in(released), volumes_in(released, "--released")
    record = dict.fromkeys(("verdicts", "power", "pooled", "differences")) | {
        "verdict": "passed",
        "flagged": [],
    }
    path.write_text("{}", encoding="utf-8")
    config = scorecard.ScorecardConfig(**{"released": str(released), source: str(path)})

    def seen(generated, training=()):
        told = {"generated": generated, "training": training}
        path.write_text(json.dumps(record | {"contents": told}), encoding="utf-8")
        return scorecard.check_released(volumes, scorecard.read_sources(config), config)

    assert seen([*contents, "withheld"]) == {source: 3}
    with pytest.raises(UserError, match=rf"--{source} .*looked at other volumes: not at 3 of the 3 in "):
        seen(["a", "b", "c"])
    if source in ("replicas", "membership"):
        with pytest.raises(UserError, match=r"looked at other volumes: not at 1 of the 3 in .*v2\.nii\.gz"):
            seen(contents[:2])
        with pytest.raises(UserError, match=rf"1 of the 3 volumes .*a training volume of --{source}"):
            seen(contents, contents[:1])
    else:
        assert seen(contents[:2]) == {source: 2}
    path.write_text(json.dumps(record | {"contents": {"real": []}}), encoding="utf-8")
    with pytest.raises(UserError, match="has no entry 'generated': give the file of that program"):
        scorecard.read_sources(config)


@pytest.mark.parametrize("how", ["flagged", "others", "trained on", "held out", "old"])
def test_a_release_that_was_not_measured_is_refused(tmp_path, how):
    released = write_set(tmp_path / "released", range(3))
    contents = contents_in(released)
    record = {"verdict": "passed", "flagged": [], "n": {"generated": 3}}
    record["contents"] = {"training": ["t"], "held_out": ["h"], "generated": contents}
    told = {
        "flagged": r"1 of the 3 volumes in --released .* flagged in --replicas .*v1\.nii\.gz: take them out",
        "others": r"looked at other volumes: not at 1 of the 3 in --released .*v2\.nii\.gz; run that program",
        "trained on": r"1 of the 3 volumes of --released are in what the model was trained on.*v1\.nii",
        "held out": r"--replicas .* took 1 volumes for held-out ones that the model was trained on",
        "old": r"has no entry 'contents': give the file of that program",
    }[how]
    if how == "flagged":
        record["flagged"] = [{"content": contents[1]}]
    if how == "others":
        record["contents"]["generated"] = contents[:2]
    if how == "old":
        del record["contents"]
    seen = {"flagged": contents[1:2], "trained on": contents[1:2], "held out": ["h", "t"]}.get(how, ["t"])
    write_trained_on(released, seen, "m.pt")  # what is flagged is told first: released.txt lists the others
    (tmp_path / "replicas.json").write_text(json.dumps(record), encoding="utf-8")
    flags = {"released": str(released), "output": str(tmp_path / "card")}
    config = scorecard.ScorecardConfig(**flags, replicas=str(tmp_path / "replicas.json"))
    with pytest.raises(UserError, match=told):
        scorecard.make_card(config)
    assert not (tmp_path / "card").exists()
