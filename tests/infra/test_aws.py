"""infra/aws: buckets and roles deployed to a CloudFormation server, jobs that run with them, and the EC2 cluster file.

moto's CloudFormation ignores versioning, the block of public access, lifecycle rules and bucket policies. The tests
read these in the template, and apply the first two to the buckets. moto's IAM checks actions and resources of a role's
policies, but no conditions; tests/reference/iam.py evaluates these.
"""

import copy
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import boto3
import botocore.validate
import cfnlint.api
import cfnlint.decode
import jsonschema
import pytest
import ray
import yaml
from botocore.exceptions import ClientError
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from tests.reference import iam as reference
from tests.support.drawing import write_folders
from tests.support.paths import ROOT
from tests.support.stores import enforced

STORAGE = ROOT / "infra/aws/storage.yaml"
CLUSTER = ROOT / "infra/aws/ray-cluster.yaml"
BUCKETS = ("Data", "Photos", "Runs", "Results")
SMALL = ["--size=32", "--width=4", "--depth=2", "--batch=4", "--epochs=1"]
DRIVER = """
import json, sys
from jobs import pack, predict, train
from jobs.common import cluster
from tests.support.jobs import taken_as_own
cluster.start_own(3)
with taken_as_own():
    for job, *options in json.loads(sys.argv[1]):
        {"pack": pack, "train": train, "predict": predict}[job].main(options)
"""
PROVIDER = "arn:aws:iam::123456789012:oidc-provider/oidc.eks.us-east-1.amazonaws.com/id/ABC"

READS = {"head", "list", "get"}
WRITES = {"put", "delete", "create an upload", "list uploads", "abort an upload"}

# Requests that a role may send to each bucket; all others must be denied.
ALLOWED = {
    "matting-train": {"Data": READS, "Runs": READS | WRITES},
    "matting-predict": {"Photos": READS, "Runs": READS, "Results": READS | WRITES},
}
PROFILES = [name + end for name in ALLOWED for end in ("", "-head")]


def client(service: str, **credentials: str) -> Any:
    return boto3.session.Session().client(service, **credentials)


def deploy(name: str, **parameters: str) -> dict[str, str]:
    """Deploy a new stack and return its outputs."""
    cloudformation = client("cloudformation")
    cloudformation.create_stack(
        StackName=name,
        TemplateBody=STORAGE.read_text(),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )
    (stack,) = cloudformation.describe_stacks(StackName=name)["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}


@pytest.fixture(scope="module")
def resources() -> dict[str, Any]:
    """Resources of the template, by logical name."""
    return cfnlint.decode.decode(str(STORAGE))[0]["Resources"]


@pytest.fixture(scope="module")
def buckets(object_store: str, resources: dict[str, Any]) -> dict[str, str]:
    """Names of the stack's buckets, and of a bucket of somebody else."""
    del object_store
    outputs, s3 = deploy("matting"), client("s3")
    names = {bucket: outputs[f"{bucket}BucketName"] for bucket in BUCKETS}
    for bucket, name in names.items():
        properties = resources[f"{bucket}Bucket"]["Properties"]
        s3.put_bucket_versioning(Bucket=name, VersioningConfiguration=dict(properties["VersioningConfiguration"]))
        s3.put_public_access_block(
            Bucket=name, PublicAccessBlockConfiguration=dict(properties["PublicAccessBlockConfiguration"])
        )
    s3.create_bucket(Bucket="of-somebody-else")
    for profile in PROFILES:
        allow_head_bucket(role_of(profile)["RoleName"])
    return {**names, "other": "of-somebody-else"}


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load(CLUSTER.read_text())


def role_of(profile: str) -> dict[str, Any]:
    """Return the role of an instance profile."""
    (role,) = client("iam").get_instance_profile(InstanceProfileName=profile)["InstanceProfile"]["Roles"]
    return role


def policies(role: str) -> list[dict[str, Any]]:
    """Return every policy of a role, attached or inline."""
    iam = client("iam")
    attached = [policy["PolicyArn"] for policy in iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]]
    own = iam.list_role_policies(RoleName=role)["PolicyNames"]
    return [
        *(iam.get_policy_version(PolicyArn=arn, VersionId="v1")["PolicyVersion"]["Document"] for arn in attached),
        *(iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"] for name in own),
    ]


def allow_head_bucket(role: str) -> None:
    """Allow HeadBucket where ListBucket is allowed. AWS does so itself; moto has a separate action for it."""
    statements = [statement for policy in policies(role) for statement in policy["Statement"]]
    (listing,) = (statement for statement in statements if statement["Action"] == "s3:ListBucket")
    policy = {"Version": "2012-10-17", "Statement": {**listing, "Action": "s3:HeadBucket"}}
    client("iam").put_role_policy(RoleName=role, PolicyName="head-bucket", PolicyDocument=json.dumps(policy))


def credentials_of(role: dict[str, Any]) -> dict[str, str]:
    found = client("sts").assume_role(RoleArn=role["Arn"], RoleSessionName="test")["Credentials"]
    return {
        "aws_access_key_id": found["AccessKeyId"],
        "aws_secret_access_key": found["SecretAccessKey"],
        "aws_session_token": found["SessionToken"],
    }


# storage.yaml ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_template_passes_cfn_lint() -> None:
    assert cfnlint.api.lint_file(STORAGE) == []


@pytest.mark.parametrize("bucket", BUCKETS)
def test_buckets_are_versioned_private_and_expire(resources: dict[str, Any], bucket: str) -> None:
    found = resources[f"{bucket}Bucket"]
    assert found["DeletionPolicy"] == found["UpdateReplacePolicy"] == "Retain"
    properties = found["Properties"]
    assert properties["VersioningConfiguration"] == {"Status": "Enabled"}
    assert properties["PublicAccessBlockConfiguration"] == dict.fromkeys(
        ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets"), True
    )
    rules = {rule["Id"]: rule for rule in properties["LifecycleConfiguration"]["Rules"]}
    assert all(rule["Status"] == "Enabled" for rule in rules.values())
    assert rules["incomplete-uploads"]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 2}
    assert rules["old-versions"]["NoncurrentVersionExpiration"] == {"NoncurrentDays": 30}
    # No rule expires current objects.
    assert not any({"ExpirationInDays", "ExpirationDate"} & rule.keys() for rule in rules.values())
    arn = {"Fn::GetAtt": [f"{bucket}Bucket", "Arn"]}
    assert resources[f"{bucket}BucketTls"]["Properties"]["PolicyDocument"]["Statement"] == [
        {
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:*",
            "Resource": [arn, {"Fn::Sub": f"${{{bucket}Bucket.Arn}}/*"}],
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
        }
    ]


def requests_to(s3: Any, bucket: str) -> dict[str, Any]:
    """Return functions that send requests to a bucket: those of the jobs, and others that nobody should send."""
    one = {"Bucket": bucket, "Key": "folder/one name.txt"}
    return {
        "head": lambda: s3.head_bucket(Bucket=bucket),
        "list": lambda: s3.list_objects_v2(Bucket=bucket),
        "get": lambda: s3.get_object(**one),
        "put": lambda: s3.put_object(**one, Body=b"1"),
        "delete": lambda: s3.delete_object(**one),
        "create an upload": lambda: s3.create_multipart_upload(**one),
        "list uploads": lambda: s3.list_multipart_uploads(Bucket=bucket),
        "abort an upload": lambda: s3.abort_multipart_upload(**one, UploadId="unknown"),
        "list versions": lambda: s3.list_object_versions(Bucket=bucket),
        "get a version": lambda: s3.get_object(**one, VersionId="unknown"),
        "delete a version": lambda: s3.delete_object(**one, VersionId="unknown"),
        "open an object to the public": lambda: s3.put_object_acl(**one, ACL="public-read"),
        "read the policy": lambda: s3.get_bucket_policy(Bucket=bucket),
        "write the policy": lambda: s3.put_bucket_policy(Bucket=bucket, Policy="{}"),
        "remove the policy": lambda: s3.delete_bucket_policy(Bucket=bucket),
        "suspend versioning": lambda: s3.put_bucket_versioning(
            Bucket=bucket, VersioningConfiguration={"Status": "Suspended"}
        ),
        "remove the block of public access": lambda: s3.delete_public_access_block(Bucket=bucket),
        "remove the bucket": lambda: s3.delete_bucket(Bucket=bucket),
    }


def is_denied(request: Any) -> bool:
    try:
        request()
    except ClientError as error:
        return error.response["Error"]["Code"] in ("AccessDenied", "403")
    return False


@pytest.mark.slow
@pytest.mark.parametrize("profile", PROFILES)
def test_roles_have_exactly_the_permissions_of_their_jobs(
    object_store: str, buckets: dict[str, str], profile: str
) -> None:
    s3 = client("s3", **credentials_of(role_of(profile)))
    with enforced(object_store):
        found = {
            bucket: {name for name, request in requests_to(s3, stored).items() if not is_denied(request)}
            for bucket, stored in buckets.items()
        }
    allowed = ALLOWED[profile.removesuffix("-head")]
    assert found == {bucket: allowed.get(bucket, set()) for bucket in buckets}


@pytest.mark.slow
@pytest.mark.usefixtures("buckets")
def test_heads_control_nodes_of_their_clusters_only() -> None:
    node, disk = "arn:aws:ec2:us-east-1:123456789012:instance/i-1", "arn:aws:ec2:us-east-1:123456789012:volume/vol-1"
    train, predict = role_of("matting-train")["Arn"], role_of("matting-predict")["Arn"]
    of = "ec2:ResourceTag/ray-cluster-name"
    table = [
        ("ec2:DescribeInstances", "*", {}, True),
        ("ec2:RunInstances", node, {"aws:RequestTag/ray-cluster-name": "matting-train"}, True),
        ("ec2:RunInstances", node, {"aws:RequestTag/ray-cluster-name": "another"}, False),
        ("ec2:RunInstances", node, {}, False),
        ("ec2:RunInstances", disk, {}, True),
        ("ec2:CreateTags", node, {"ec2:CreateAction": "RunInstances"}, True),
        ("ec2:CreateTags", node, {of: "matting-train"}, True),
        ("ec2:CreateTags", node, {}, False),  # else it could tag, and so control, any instance
        ("ec2:TerminateInstances", node, {of: "matting-train"}, True),
        ("ec2:TerminateInstances", node, {of: "another"}, False),
        ("ec2:TerminateInstances", node, {}, False),
        ("ec2:StopInstances", node, {of: "matting-train"}, False),
        ("iam:PassRole", train, {"iam:PassedToService": "ec2.amazonaws.com"}, True),
        ("iam:PassRole", train, {"iam:PassedToService": "lambda.amazonaws.com"}, False),
        ("iam:PassRole", predict, {"iam:PassedToService": "ec2.amazonaws.com"}, False),
        ("iam:AttachRolePolicy", train, {}, False),
    ]
    head = policies(role_of("matting-train-head")["RoleName"])
    worker = policies(role_of("matting-train")["RoleName"])
    for action, resource, context, expected in table:
        assert reference.allows(head, action, resource, context) == expected, (action, resource, context)
        assert not reference.allows(worker, action, resource, context)


@pytest.mark.slow
def test_stack_takes_existing_buckets_and_an_oidc_provider(object_store: str) -> None:
    del object_store
    existing = {"ExistingDataBucket": "my-pairs", "ExistingPhotosBucket": "my-photos"}
    outputs = deploy("pods", OidcProviderArn=PROVIDER, PredictServiceAccount="night:shift", **existing)
    assert (outputs["DataBucketName"], outputs["PhotosBucketName"]) == ("my-pairs", "my-photos")
    made = [bucket["Name"] for bucket in client("s3").list_buckets()["Buckets"] if bucket["Name"].startswith("pods-")]
    assert sorted(made) == sorted([outputs["RunsBucketName"], outputs["ResultsBucketName"]])
    role = role_of("pods-predict")
    assert role["Arn"] == outputs["PredictRoleArn"]
    on_nodes, in_pods = role["AssumeRolePolicyDocument"]["Statement"]
    assert on_nodes["Principal"] == {"Service": "ec2.amazonaws.com"}
    assert in_pods["Principal"] == {"Federated": PROVIDER}
    assert in_pods["Action"] == "sts:AssumeRoleWithWebIdentity"
    issuer = "oidc.eks.us-east-1.amazonaws.com/id/ABC"
    assert in_pods["Condition"] == {
        "StringEquals": {f"{issuer}:aud": "sts.amazonaws.com", f"{issuer}:sub": "system:serviceaccount:night:shift"}
    }
    granted = policies(role["RoleName"])
    assert reference.allows(granted, "s3:GetObject", "arn:aws:s3:::my-photos/a.jpg")
    assert not reference.allows(granted, "s3:PutObject", "arn:aws:s3:::my-photos/a.jpg")
    assert not reference.allows(granted, "s3:GetObject", "arn:aws:s3:::my-pairs/a.jpg")


@pytest.mark.slow(seconds=45)
def test_jobs_run_under_the_roles_of_the_stack(
    object_store: str, buckets: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folders(tmp_path, 12, 40)
    s3 = client("s3")
    for path in sorted(tmp_path.rglob("*.png")):
        s3.upload_file(str(path), buckets["Data"], f"people/{path.relative_to(tmp_path)}")
        if path.parent.name == "images":
            s3.upload_file(str(path), buckets["Photos"], path.name)
    inputs = {bucket: etags(s3, buckets[bucket]) for bucket in ("Data", "Photos")}
    photos, runs, results = (f"s3://{buckets[bucket]}" for bucket in ("Photos", "Runs", "Results"))
    work = {
        "matting-train": [
            ("pack", f"--pairs=s3://{buckets['Data']}/people", f"--output={runs}/packed/people", "--split-seed=2"),
            ("train", f"--data={runs}/packed/people", f"--output={runs}", "--name=first", *SMALL),
        ],
        "matting-predict": [
            ("predict", f"--checkpoint={runs}/first/best", f"--images={photos}", f"--output={results}"),
        ],
    }
    credentials = {role: credentials_of(role_of(role)) for role in work}
    with enforced(object_store):
        for role, commands in work.items():
            for name, value in credentials[role].items():
                monkeypatch.setenv(name.upper(), value)
            # Each role has its own process, since a cluster's workers keep the credentials that it was started with.
            driver = [sys.executable, "-c", DRIVER, json.dumps(commands)]
            done = subprocess.run(driver, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240)
            assert done.returncode == 0, done.stdout
    assert {bucket: etags(s3, buckets[bucket]) for bucket in inputs} == inputs
    assert {f"alpha/{key}.png" for key in inputs["Photos"]} <= etags(s3, buckets["Results"]).keys()
    made = s3.head_object(Bucket=buckets["Runs"], Key="first/best/model.safetensors")
    assert made["ServerSideEncryption"] == "AES256"


def etags(s3: Any, bucket: str) -> dict[str, str]:
    """Return the ETags of all objects in a bucket, by key."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {row["Key"]: row["ETag"] for page in pages for row in page.get("Contents", ())}


# ray-cluster.yaml -----------------------------------------------------------------------------------------------------


def test_ray_accepts_the_cluster_file(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(copy.deepcopy(cluster)))
    misspelled = copy.deepcopy(cluster)
    misspelled["available_node_types"]["cpu"]["max_worker"] = 4
    with pytest.raises(jsonschema.ValidationError, match="'max_worker' was unexpected"):
        validate_config(prepare_config(misspelled))


def test_ec2_accepts_the_node_configs(cluster: dict[str, Any]) -> None:
    # Ray passes node configs on unchecked, and its own schema allows anything.
    request = client("ec2", region_name="us-east-1").meta.service_model.operation_model("RunInstances").input_shape
    for kind in cluster["available_node_types"].values():
        botocore.validate.validate_parameters({**kind["node_config"], "MinCount": 1, "MaxCount": 1}, request)


def test_nodes_have_roles_of_the_stack_and_no_keys(cluster: dict[str, Any], resources: dict[str, Any]) -> None:
    names = {
        resource["Properties"]["InstanceProfileName"]["Fn::Sub"].replace("${AWS::StackName}", "matting")
        for resource in resources.values()
        if resource["Type"] == "AWS::IAM::InstanceProfile"
    }
    for kind, settings in cluster["available_node_types"].items():
        profile = settings["node_config"]["IamInstanceProfile"]["Name"]
        assert profile == f"{cluster['cluster_name']}{'-head' if kind == cluster['head_node_type'] else ''}"
        assert {profile, profile.replace("train", "predict")} <= names
        assert settings["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}
        assert "KeyName" not in settings["node_config"]
    assert cluster["auth"] == {"ssh_user": "ubuntu"}


def test_nodes_run_the_pinned_versions(cluster: dict[str, Any]) -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (boto3_pin,) = (pin for pin in dependencies if pin.startswith("boto3"))
    assert cluster["head_setup_commands"] == [f"pip install '{boto3_pin}'"]
    assert cluster["setup_commands"] == []  # Ray's own default is a nightly build of Ray
    config = AutoscalingConfig(copy.deepcopy(cluster), skip_content_hash=True)
    images = {kind: config.get_docker_config(kind)["image"] for kind in cluster["available_node_types"]}
    image = f"rayproject/ray:{ray.__version__}-py311-"
    assert images == {
        **dict.fromkeys(("head", "cpu"), f"{image}cpu"),
        **dict.fromkeys(("gpu-spot", "gpu-on-demand"), f"{image}cu128"),
    }


@pytest.mark.parametrize(
    ("tasks", "needs", "spot_has_failed", "started"),
    [
        (40, {"CPU": 1}, False, {"cpu": 3}),
        (1, {"CPU": 1}, True, {"cpu": 1}),
        (2, {"GPU": 1, "CPU": 4}, False, {"gpu-spot": 2}),
        (2, {"GPU": 1, "CPU": 4}, True, {"gpu-on-demand": 2}),
        (6, {"GPU": 1}, False, {"gpu-spot": 4, "gpu-on-demand": 2}),
    ],
)
def test_scheduler_starts_gpus_only_for_gpu_work(
    cluster: dict[str, Any], tasks: int, needs: dict[str, float], spot_has_failed: bool, started: dict[str, int]
) -> None:
    config = AutoscalingConfig(copy.deepcopy(cluster), skip_content_hash=True)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_worker_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(needs)] * tasks),
        recoverable_resource_availabilities={"gpu-spot": 0.0} if spot_has_failed else {},
    )
    reply = ResourceDemandScheduler(event_logger=None).schedule(request)
    assert {launch.instance_type: launch.count for launch in reply.to_launch} == started
