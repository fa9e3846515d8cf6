# Make a RayJob like `predict`, look at it every POLL_SECONDS, and exit as it ends. Until then the CronJob starts no
# other.
#
# It is named after the Kubernetes Job that runs this (JOB_NAME), so a pod that replaces an evicted one finds it and
# waits on; and it belongs to that Job (JOB_UID), so it goes when the Job goes. Not the same name: KubeRay gives the
# RayJob's to a Kubernetes Job of its own.
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
