"""A short soak of two faults, and a search for planted secrets in everything that the runs wrote."""

from pathlib import Path

import pytest

from matting.storage import store
from tests.studies.soak.faults import plan
from tests.studies.soak.study import prepared

FAULTS, SEED = 2, 488  # a lost worker of training on S3; a lost node of predicting on S3, while another joins
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "planted-secret-access-key-5d1f",
    "AWS_SESSION_TOKEN": "planted-session-token-77ac",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-password-e09b",
}


@pytest.mark.slow(seconds=100)
@pytest.mark.timeout(600)
def test_jobs_survive_faults_without_leaking_secrets(
    tmp_path: Path, ray_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    with prepared(tmp_path, SEED) as soak:
        for fault in plan(FAULTS, SEED):
            line = soak.suffer(fault)
            print(line)
            assert "hit nothing" not in line
        written = {file.key: store.read_bytes(f"{soak.bucket}/{file.key}") for file in store.list_files(soak.bucket)}
        written |= {f"output {number}": output.encode() for number, output in enumerate(soak.outputs)}
    written |= {
        str(path): path.read_bytes() for root in (tmp_path, ray_files) for path in root.rglob("*") if path.is_file()
    }
    assert any(name.endswith("raylet.out") for name in written)
    assert any(name.endswith("run.json") for name in written)
    for secret in SECRETS.values():
        assert [name for name, content in written.items() if secret.encode() in content] == []
