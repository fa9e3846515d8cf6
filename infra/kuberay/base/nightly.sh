# Creates a copy of the RayJob `predict`, polls it every POLL_SECONDS, and exits with its outcome. The CronJob starts no
# other run while this script waits.
#
# The copy is named after the Kubernetes Job of this script (JOB_NAME), so a pod that replaces an evicted one finds it
# and waits on. The Job owns the copy (JOB_UID), so Kubernetes deletes both together. The names differ by a suffix,
# since KubeRay creates a Kubernetes Job with the RayJob's name.
set -eu

name=$JOB_NAME-ray
found=$(kubectl get rayjob "$name" --ignore-not-found --output name)
if [ -z "$found" ]; then
  kubectl get rayjob predict --output json |
    kubectl patch --local --filename - --type merge --output json --patch '{
      "metadata": {
        "name": "'"$name"'", "uid": null, "resourceVersion": null, "generation": null, "creationTimestamp": null,
        "annotations": null, "finalizers": null,
        "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "'"$JOB_NAME"'", "uid": "'"$JOB_UID"'"}]
      },
      "spec": {"suspend": false},
      "status": null
    }' |
    kubectl create --filename -
fi

while true; do
  state=$(kubectl get rayjob "$name" --output 'jsonpath={.status.jobDeploymentStatus}')
  case $state in
    Complete) exit 0 ;;
    Failed | ValidationFailed)
      kubectl get rayjob "$name" --output 'jsonpath={.status.reason}: {.status.message}{"\n"}' >&2
      exit 1
      ;;
  esac
  sleep "$POLL_SECONDS"
done
