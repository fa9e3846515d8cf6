"""A short soak: two faults; and of all that the runs left and logged, nothing tells a secret."""

from pathlib import Path

import pytest

from matting import storage
from tests import soak

FAULTS, SEED = 2, 1328  # training on S3 loses its worker; predicting there, a node, while another joins
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "planted-secret-access-key-5d1f",
    "AWS_SESSION_TOKEN": "planted-session-token-77ac",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-password-e09b",
}


@pytest.mark.timeout(600)
def test_after_each_fault_everything_holds_and_no_secret_is_told(
    tmp_path: Path, ray_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    with soak.prepared(tmp_path, SEED) as soaked:
        for fault in soak.plan(FAULTS, SEED):
            told = soaked.suffer(fault)
            print(told)
            assert "hit nothing" not in told
        left = {
            file.key: storage.read_bytes(f"{soaked.bucket}/{file.key}") for file in storage.list_files(soaked.bucket)
        }
        left |= {f"output {number}": said.encode() for number, said in enumerate(soaked.said)}
    left |= {
        str(path): path.read_bytes() for root in (tmp_path, ray_files) for path in root.rglob("*") if path.is_file()
    }
    assert any(name.endswith("raylet.out") for name in left)
    assert any(name.endswith("run.json") for name in left)
    for secret in SECRETS.values():
        assert [name for name, content in left.items() if secret.encode() in content] == []
