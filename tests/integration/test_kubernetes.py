"""The manifests of deploy/kubernetes: Kubernetes takes them, and they give nothing away."""

from __future__ import annotations

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from api_key_manager.config import Settings
from api_key_manager.server import listening

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))
# The oldest version that gets mends somewhere, and the newest that there are schemas of.
VERSIONS = ["1.30", kubernetes_validate.latest_version()]
SECRETS = {name for name, field in Settings.model_fields.items() if not field.repr}


def document(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    return found


def everything(value: Any) -> list[tuple[str, Any]]:
    """Each member of each object of a document, however deep."""
    if isinstance(value, dict):
        return [*value.items(), *(p for member in value.values() for p in everything(member))]
    if isinstance(value, list):
        return [pair for item in value for pair in everything(item)]
    return []


PODS = {
    name: document(name)["spec"]["template"]["spec"]
    for name in ("deployment.yaml", "upgrade-job.yaml")
}
pods = pytest.mark.parametrize("pod", list(PODS.values()), ids=list(PODS))


def container(pod: dict[str, Any]) -> dict[str, Any]:
    """The one container; there is no other way in."""
    assert not pod.get("initContainers")
    (found,) = pod["containers"]
    only: dict[str, Any] = found
    return only


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_schema(file: Path, version: str):
    """Kubernetes knows every field, and takes its value."""
    kubernetes_validate.validate(document(file.name), version, strict=True)


def test_schema_refuses():
    """The validator does look: a misspelt field is an error."""
    wrong = copy.deepcopy(document("deployment.yaml"))
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 40
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_one_namespace():
    """Everything lies in the namespace that is made for it, which takes no privileged pods."""
    namespace = document("namespace.yaml")
    labels = namespace["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for file in FILES:
        if file.name != "namespace.yaml":
            found = document(file.name)["metadata"]["namespace"]
            assert found == namespace["metadata"]["name"], file.name


class TestPods:
    @pods
    def test_not_root(self, pod: dict[str, Any]):
        """The user is the image's, by number, and the kernel offers the usual calls only."""
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        docker = (FOLDER.parents[1] / "docker" / "Dockerfile").read_text(encoding="utf-8")
        assert f"\nUSER {context['runAsUser']}:{context['runAsGroup']}\n" in docker
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}

    @pods
    def test_no_privileges(self, pod: dict[str, Any]):
        """No capability, no way to get one, and nothing to write to but /tmp, which is memory."""
        own = container(pod)
        assert own["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert own["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]
        (volume,) = pod["volumes"]
        assert volume["emptyDir"]["medium"] == "Memory"
        assert volume["emptyDir"]["sizeLimit"]

    @pods
    def test_nothing_of_the_host(self, pod: dict[str, Any]):
        """It shares nothing with its machine, and has no account in the cluster."""
        names = {name for name, _ in everything(pod)}
        shared = {"hostNetwork", "hostPID", "hostIPC", "hostPath", "hostPort", "privileged"}
        assert not names & shared
        assert pod["automountServiceAccountToken"] is False

    @pods
    def test_resources(self, pod: dict[str, Any]):
        """It says what it needs, and is ended before it takes the machine's memory."""
        resources = container(pod)["resources"]
        assert set(resources["requests"]) == {"cpu", "memory"}
        assert set(resources["limits"]) == {"memory"}

    @pods
    def test_secrets_by_reference(self, pod: dict[str, Any]):
        """Every variable with a secret comes from the secret, under its own name."""
        given = container(pod)["env"]
        for variable in given:
            assert set(variable) == {"name", "valueFrom"}
            reference = variable["valueFrom"]["secretKeyRef"]
            assert (reference["name"], reference["key"]) == ("akm", variable["name"])
            assert variable["name"] in SECRETS
        required = {v["name"] for v in given if not v["valueFrom"]["secretKeyRef"].get("optional")}
        assert required == {"DATABASE_URL", "REDIS_URL", "AKM_MASTER_KEY"}

    def test_same_image(self):
        """The job brings the schema to what the pods expect."""
        images = {container(pod)["image"] for pod in PODS.values()}
        assert len(images) == 1


class TestSecrets:
    def test_none_in_the_tree(self):
        """No manifest is a secret, and none sets a setting that is one."""
        for file in FILES:
            found = document(file.name)
            assert found["kind"] != "Secret"
            for name, value in everything(found):
                assert name not in SECRETS or value == "", f"{file.name}: {name}"

    def test_how_to_make_it(self):
        """The command of the README makes every key that the pods need at first, and no other."""
        text = (FOLDER / "README.md").read_text(encoding="utf-8")
        (command,) = re.findall(r"^kubectl .* create secret generic akm(?:.*\\\n)*.*$", text, re.M)
        words = shlex.split(command.replace("\\\n", " "))
        made = {word.split("=")[1] for word in words if word.startswith("--from-file=")}
        pod = PODS["deployment.yaml"]
        later = {"AKM_PREVIOUS_MASTER_KEY"}
        assert made == {variable["name"] for variable in container(pod)["env"]} - later
        assert not any(word.startswith("--from-literal") for word in words)

    def test_settings(self):
        """What the config map says are settings of allowed values, and none of them is a secret."""
        data = document("configmap.yaml")["data"]
        assert not {name for name, value in data.items() if value} & SECRETS
        Settings.load(**{name: value for name, value in data.items() if value})
        assert data["PORT"] == str(container(PODS["deployment.yaml"])["ports"][0]["containerPort"])


class TestServing:
    def spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = document("deployment.yaml")["spec"]
        return spec

    def test_no_gap(self):
        """An upgrade takes no pod away before a new one is ready, nor does a drain take two."""
        spec = self.spec()
        assert spec["replicas"] >= 3
        assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        assert document("poddisruptionbudget.yaml")["spec"]["maxUnavailable"] == 1

    def test_probes(self):
        """Only a dead process is restarted; one that isn't ready is spared requests."""
        own = container(PODS["deployment.yaml"])
        asked = {
            name: own[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")
        }
        port = own["ports"][0]["name"]
        assert asked == {
            "startup": {"path": "/healthz", "port": port},
            "liveness": {"path": "/healthz", "port": port},
            "readiness": {"path": "/readyz", "port": port},
        }

    def test_stop(self):
        """A stop gets more time than the pause, running requests and the audit log need."""
        pod = PODS["deployment.yaml"]
        command = container(pod)["lifecycle"]["preStop"]["exec"]["command"]
        pause = int(re.findall(r"sleep\((\d+)\)", command[-1])[0])
        assert pod["terminationGracePeriodSeconds"] >= pause + 2 * listening._GRACE_SECONDS

    @pytest.mark.parametrize(
        "selector",
        [
            document("service.yaml")["spec"]["selector"],
            document("poddisruptionbudget.yaml")["spec"]["selector"]["matchLabels"],
            document("networkpolicy.yaml")["spec"]["podSelector"]["matchLabels"],
            document("deployment.yaml")["spec"]["selector"]["matchLabels"],
            *(
                spread["labelSelector"]["matchLabels"]
                for spread in PODS["deployment.yaml"]["topologySpreadConstraints"]
            ),
        ],
        ids=json.dumps,
    )
    def test_selectors(self, selector: dict[str, str]):
        """What is about the pods finds them by their labels."""
        labels = self.spec()["template"]["metadata"]["labels"]
        assert selector.items() <= labels.items()

    def test_service(self):
        """It sends to the server's pods, not to the job's, and opens nothing to the outside."""
        service = document("service.yaml")["spec"]
        assert service["type"] == "ClusterIP"
        assert service["ports"][0]["targetPort"] == "http"
        job = document("upgrade-job.yaml")["spec"]["template"]["metadata"]["labels"]
        assert not service["selector"].items() <= job.items()


class TestNetwork:
    def policy(self) -> dict[str, Any]:
        policy: dict[str, Any] = document("networkpolicy.yaml")["spec"]
        return policy

    def test_in(self):
        """From one namespace to one port."""
        policy = self.policy()
        assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
        (rule,) = policy["ingress"]
        assert len(rule["from"]) == 1
        assert rule["ports"] == [{"protocol": "TCP", "port": "http"}]

    def test_out(self):
        """To the stores and to names, each at its own ports."""
        ports = sorted(p["port"] for rule in self.policy()["egress"] for p in rule["ports"])
        assert ports == [53, 53, 5432, 6379]

    def test_nobody_in_general(self):
        """No rule without a peer, and no peer that is everybody."""
        policy = self.policy()
        peers = [peer for rule in policy["ingress"] for peer in rule["from"]]
        peers += [peer for rule in policy["egress"] for peer in rule["to"]]
        assert len(peers) == 4
        for peer in peers:
            assert "ipBlock" not in peer
            assert peer["namespaceSelector"]["matchLabels"]


def test_readme_names_each_file():
    """The table has every manifest, and no other."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `([\w.-]+)` \|", text, re.MULTILINE))
    assert named == {file.name for file in FILES}
    for applied in re.findall(r"-f ([\w-]+\.yaml)", text):
        assert applied in named
