"""Number format of a prediction: decided once for all nodes, and never mixed."""

import pytest

from jobs.common import cluster
from jobs.common.cluster import ClusterError
from jobs.prediction import precision
from jobs.prediction.precision import decide_precision, fastest_common, formats_by_node, formats_here, require_precision

AMX = ("int8", "bf16", "fp32")
VNNI = ("int8", "fp32")
PLAIN = ("fp32",)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([AMX], "int8"),
        ([AMX, VNNI], "int8"),
        ([AMX, PLAIN], "fp32"),
        ([("bf16", "fp32"), AMX], "bf16"),
        ([("bf16", "fp32"), ("fp32", "bf16")], "fp32"),
    ],
)
def test_all_nodes_share_the_fastest_format(nodes: list[precision.Formats], expected: str) -> None:
    assert fastest_common(nodes) == expected
    assert fastest_common(reversed(nodes)) == expected


def test_no_nodes_is_an_error() -> None:
    with pytest.raises(ClusterError, match="No node of the cluster is left"):
        fastest_common([])


def test_this_machine_decides_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "is_own", lambda: True)
    monkeypatch.setattr(cluster, "join", lambda: pytest.fail("a cluster is joined"))
    monkeypatch.setattr(precision, "formats_here", lambda _: VNNI)
    assert decide_precision("auto", "auto") == "int8"
    assert decide_precision("fp32", "auto") == "fp32"
    with pytest.raises(ClusterError, match=r"--precision bf16 .*this machine can compute int8, fp32\."):
        decide_precision("bf16", "auto")


def test_nodes_of_a_cluster_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "is_own", lambda: False)
    monkeypatch.setattr(cluster, "join", lambda: None)
    monkeypatch.setattr(cluster, "require", lambda **needs: None)  # noqa: ARG005
    monkeypatch.setattr(precision, "formats_by_node", lambda _: {"node 10.0.0.1": AMX, "node 10.0.0.2": PLAIN})
    assert decide_precision("auto", "auto") == "fp32"
    assert decide_precision("int8", "cpu") == "int8"  # which is checked when the job has joined
    with pytest.raises(ClusterError, match=r"--precision int8 .*: node 10\.0\.0\.2 can compute fp32\. .* is fp32"):
        require_precision("int8", "auto")
    require_precision("fp32", "auto")


@pytest.mark.usefixtures("ray_cluster")
def test_every_node_answers() -> None:
    (formats,) = formats_by_node("auto").values()
    assert formats == formats_here()
