"""Checks what a machine without containers can check of ops/deploy, and writes what the programs are to check into a folder.

    check.py ROOT OUT

ROOT is the repository. Each finding is a line on standard output; exit code 1 if there is one. OUT gets a folder for each deployment,
with its configuration files, and OUT/commands.json: the command lines of the containers, with their environment and the folder that
/etc/shardledger stands for.
"""

import json
import pathlib
import sys
import tomllib

import helm_python
import kubernetes_validate
import yaml
from compose_spec import PyCompose

ROOT, OUT = (pathlib.Path(argument) for argument in sys.argv[1:3])
DEPLOY = ROOT / "ops/deploy"
CHART = DEPLOY / "helm/shardledger"
CONFIGURATION = "/etc/shardledger"
# The oldest version that the chart names, and a recent one.
KUBERNETES = ["1.27.0", "1.34.0"]
# Volumes of the compose file that are not in the repository: `make-secrets.sh` makes them, and other pages of ops bring them.
MADE_LATER = {"./secrets/router", "./secrets/nginx", "../../alerts.yml", "../../dashboards"}

findings = []
commands = []


def finding(place, text):
    findings.append(f"{place}: {text}")


def names(value):
    """Names of a list or of a mapping."""
    return list(value or [])


def check_compose():
    path = DEPLOY / "compose/compose.yaml"
    project = yaml.safe_load(path.read_text())
    try:
        PyCompose.from_json(json.dumps(project))
    except ValueError as error:
        finding(path, error)
    services = project["services"]
    for name, service in services.items():
        ours = service["image"].startswith("shardledger:")
        if ours and service["restart"] != "no" and "healthcheck" not in service:
            finding(path, f"{name} has no healthcheck")
        if ":" not in service["image"]:
            finding(path, f"{name}: {service['image']} has no tag")
        for other, how in service.get("depends_on", {}).items():
            if other not in services:
                finding(path, f"{name} depends on {other}, which does not exist")
            elif how["condition"] == "service_healthy" and "healthcheck" not in services[other]:
                finding(path, f"{name} waits for the health of {other}, which has no healthcheck")
        for network in names(service.get("networks")):
            if network not in project["networks"]:
                finding(path, f"{name} is in the network {network}, which does not exist")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            here = source.startswith(".")
            if here and source not in MADE_LATER and not (path.parent / source).exists():
                finding(path, f"{name} mounts {source}, which does not exist")
            if not here and source not in project["volumes"]:
                finding(path, f"{name} mounts the volume {source}, which does not exist")
        if ours:
            environment = {
                key: value.replace("${LEDGER_PASSWORD}", "secret") for key, value in service.get("environment", {}).items()
            }
            commands.append(
                {"place": f"compose.yaml: {name}", "words": service["command"], "environment": environment, "folder": str(path.parent / "config")}
            )
    prometheus = path.parent / "prometheus/prometheus.yml"
    for job in yaml.safe_load(prometheus.read_text())["scrape_configs"]:
        # ops/alerts.yml looks for these jobs by the beginning of their names.
        if not job["job_name"].startswith("shardledger"):
            finding(prometheus, f"the alerts do not find the job {job['job_name']}")
    for shard in yaml_map_nodes(path.parent / "config/shard-map.toml"):
        if shard not in services:
            finding(path, f"the shard map names the node {shard}, which is no service")


def yaml_map_nodes(path):
    """The hosts of the nodes in a shard map."""
    shards = tomllib.loads(path.read_text())["shard"]
    return [node.removeprefix("http://").split(":")[0] for shard in shards for node in shard["nodes"]]


def check_yaml():
    for path in sorted(DEPLOY.rglob("*.y*ml")):
        if "templates" in path.parts:
            continue
        try:
            list(yaml.safe_load_all(path.read_text()))
        except yaml.YAMLError as error:
            finding(path, error)


def check_chart(name, values):
    place = f"chart with {name}"
    for message in helm_python.lint(CHART, values, strict=True)["messages"]:
        # Severity 1 is a recommendation, such as the one of an icon.
        if message["severity"] > 1:
            finding(place, message["error"])
    with helm_python.Chart.load(CHART) as chart:
        rendered = chart.render(values, name="demo", namespace="prod")
    objects = [
        document
        for template, text in sorted(rendered.items())
        if template.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]
    folder = OUT / name
    folder.mkdir(parents=True)
    services = set()
    for thing in objects:
        what = f"{place}: {thing['kind']} {thing['metadata']['name']}"
        for version in KUBERNETES:
            try:
                kubernetes_validate.validate(thing, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                finding(what, f"Kubernetes {version}: {error.message} at {list(error.path)}")
        if thing["kind"] == "ConfigMap":
            for file, text in thing["data"].items():
                (folder / file).write_text(text)
        if thing["kind"] == "Service":
            services.add(thing["metadata"]["name"])
        if thing["kind"] in ("Deployment", "Job"):
            pod = thing["spec"]["template"]["spec"]
            if not pod["securityContext"].get("runAsNonRoot"):
                finding(what, "may run as root")
            volumes = {volume["name"] for volume in pod["volumes"]}
            for container in pod["containers"]:
                for mount in container["volumeMounts"]:
                    if mount["name"] not in volumes:
                        finding(what, f"mounts {mount['name']}, which is no volume")
                environment = {variable["name"]: "postgres://ledger:secret@db/ledger" for variable in container.get("env", [])}
                # Folders of the configuration are beside each other in a pod, and one folder here.
                words = [word.replace(f"{CONFIGURATION}/router/", f"{CONFIGURATION}/") for word in container["args"]]
                commands.append({"place": what, "words": words, "environment": environment, "folder": str(folder)})
    for node in yaml_map_nodes(folder / "shard-map.toml"):
        if node not in services:
            finding(place, f"the shard map names the node {node}, which is no service")
    return len(objects)


def check_refused(name, values):
    try:
        with helm_python.Chart.load(CHART) as chart:
            chart.render(values, name="demo", namespace="prod")
    except helm_python.HelmError:
        return
    finding("values.schema.json", f"values {name} are not refused")


CLUSTER = {"id": "0190d7c0-0000-7000-8000-00000000c1a5"}
ACCEPTED = {
    "a proxy that ends TLS": {"cluster": CLUSTER, "router": {"allowPlaintext": True}},
    "a certificate": {
        "cluster": CLUSTER,
        "router": {"tlsSecret": "ledger-tls", "config": {"worker_threads": 2, "limits": {"requests_per_second": 5000}, "assets": {"BTC": 8}}},
        "node": {"config": {"lane": {"fold_interval_ms": 2000, "cache_bytes": 4294967296}, "log": {"level": "info,h2=warn"}}},
        "networkPolicy": {"clients": [{"podSelector": {"matchLabels": {"app": "shop"}}}], "monitoring": [{"namespaceSelector": {}}]},
        "podAnnotations": {"prometheus.io/scrape": "true"},
        "image": {"tag": "0.1.1", "pullSecrets": [{"name": "registry"}]},
    },
    "no keys": {"cluster": CLUSTER, "router": {"keysSecret": "", "allowUnauthenticated": True}, "networkPolicy": {"enabled": False}, "init": {"enabled": False}},
}
REFUSED = {
    "without a cluster id": {"router": {"allowPlaintext": True}},
    "with keys and without TLS": {"cluster": CLUSTER},
    "without keys": {"cluster": CLUSTER, "router": {"keysSecret": ""}},
    "with keys that are not needed": {"cluster": CLUSTER, "router": {"allowPlaintext": True, "allowUnauthenticated": True}},
    "with a section that the chart decides": {"cluster": CLUSTER, "router": {"allowPlaintext": True, "config": {"admin": {"listen": "0.0.0.0:1"}}}},
    "with an unknown name": {"cluster": CLUSTER, "router": {"allowPlaintext": True}, "shard": []},
    "with a shard number that is too high": {
        "cluster": CLUSTER,
        "router": {"allowPlaintext": True},
        "shards": [{"id": "s0", "number": 4096, "slots": ["0-16383"], "databaseUrl": {"secret": "s0", "key": "url"}}],
    },
}

check_yaml()
check_compose()
for name, values in ACCEPTED.items():
    if check_chart(name, values) < 6:
        finding(name, "hardly anything was rendered")
for name, values in REFUSED.items():
    check_refused(name, values)
(OUT / "commands.json").write_text(json.dumps(commands, indent=1))
for line in findings:
    print(line)
sys.exit(1 if findings else 0)
