"""What deploy/k8s must say about each workload, held against the table of services and the table of settings.

Each rule yields its faults, one sentence each. `faults` puts the file that a person has to mend before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import click
import yaml

from ops.cli import main as cli
from ops.local.supervisor import STOP_TIMEOUT_S
from shared import config, relay
from shared.edge import consumer, rpc, webserver
from shared.setting import Row
from tests.deploy.overlays import CRON_JOBS, DEV, JOBS, PROD, ROOT, SECRETS, Overlay, Workload
from topology import services
from topology.flows import PUBLIC
from topology.services import SERVICES, Service
from topology.users import SHELL

# The fewest and the most replicas of a service; a service that is not named here has LATER.
# Secrets of other systems: the mail server, the OpenID providers. One machine does without them.
OUTSIDE = {"SMTP_URL": "smtp_url", "OIDC_PROVIDERS": "oidc_providers"}
REPLICAS = {"gateway": (3, 6), "order": (3, 5), "auth": (3, 3), "payment": (3, 5), "inventory": (2, 4), "ops": (1, 1)}
LATER = (2, 2)
# What a container may use at most, and how much of a processor is kept for it. None has a limit of the latter: a
# service that is kept from running for a while sends no heartbeats and answers no probe.
MEMORY, CPU = "512Mi", "250m"
LARGER = {"payment": ("1Gi", "500m")}
TEMPORARY = {"ops": "1Gi"}  # of /tmp, where operators write what they copy out of a DLQ
TEMPORARY_ELSEWHERE = "64Mi"
GRACE_S = 40
# What clients reach has a Service, and its address is gone so long before it stops.
GONE_S = 5
PROBES = {
    "startupProbe": {"path": "/healthz", "periodSeconds": 2, "failureThreshold": 60},
    "livenessProbe": {"path": "/healthz", "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3},
    "readinessProbe": {"path": "/readyz", "periodSeconds": 5, "timeoutSeconds": 4},
}
ROLLING = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
USER = 10001  # of deploy/Dockerfile
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
SPREAD = ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
COMMANDS = {
    "migrate": ["ecom", "migrate"],
    "topology": ["ecom", "topology", "apply", "--users"],
    "audit": ["ecom", "audit", "verify"],
}
NAME = "app.kubernetes.io/name"
STEP = "app.kubernetes.io/component"  # by it deploy/k8s/apply selects what comes next
# Connections to PostgreSQL that no service of ours opens: operators', migrations', the superuser's, monitoring.
OTHER_CONNECTIONS = 50

Faults = Iterator[str]


def faults(overlay: Overlay, rows: Sequence[Service] = SERVICES) -> list[str]:
    """Every fault of an overlay, each with its file."""
    found = [f"{overlay.file_of(kind, name)}: there is no {kind} {name}" for kind, name in _missing(overlay, rows)]
    names = {row.name for row in rows} | JOBS.keys() | CRON_JOBS.keys()
    for workload in overlay.workloads():
        kind = workload.resource["kind"]
        rules = (*OF_EVERY, *(OF_SERVICES if kind in ("Deployment", "Rollout") else OF_JOBS))
        if workload.name not in names:
            rules = (_unknown,)
        said = [fault for rule in rules for fault in rule(overlay, workload)]
        found += [f"{overlay.file_of(kind, workload.name)}: {workload.name} {fault}" for fault in said]
    return [*found, *_services(overlay), *_servers(overlay), *_connections(overlay, rows)]


def workload_kind(overlay: Overlay) -> str:
    """As what the services of an overlay run."""
    return "Rollout" if any(overlay.of("Rollout")) else "Deployment"


def _missing(overlay: Overlay, rows: Sequence[Service]) -> Iterator[tuple[str, str]]:
    wanted = [(kind, row.name) for row in rows for kind in (workload_kind(overlay), "PodDisruptionBudget")]
    wanted += [("Job", name) for name in JOBS] + [("CronJob", name) for name in CRON_JOBS]
    names = [name for kind, name in wanted if kind != "PodDisruptionBudget"]
    wanted += [("ServiceAccount", name) for name in names]
    wanted += [("Secret" if overlay.name == DEV else "ExternalSecret", name) for name in names]
    wanted += [("Certificate", name) for name in names if overlay.name == PROD]
    return ((kind, name) for kind, name in wanted if overlay.find(kind, name) is None)


def _unknown(overlay: Overlay, workload: Workload) -> Faults:
    yield "is no service and no command"


# What holds for every pod of ours.


def _command(overlay: Overlay, workload: Workload) -> Faults:
    wanted = COMMANDS.get(workload.name, ["ecom", "run", workload.name])
    words = [str(word) for word in workload.arguments]
    if words[: len(wanted)] != wanted or (workload.name not in COMMANDS and words != wanted):
        yield f"runs {words}"
        return
    command: click.Command | None = cli.ecom
    words = words[1:]
    while words and isinstance(command, click.Group) and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    try:
        command.make_context("ecom", words)
    except click.ClickException as error:
        yield f"runs what ecom refuses: {error.format_message()}"


def _resources(overlay: Overlay, workload: Workload) -> Faults:
    memory, cpu = LARGER.get(workload.name, (MEMORY, CPU))
    wanted = {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": memory}}
    if workload.container.get("resources") != wanted:
        yield f"has the resources {workload.container.get('resources')}, not {wanted}"


def _security(overlay: Overlay, workload: Workload) -> Faults:
    if workload.pod.get("securityContext") != POD_SECURITY:
        yield f"has the securityContext {workload.pod.get('securityContext')}"
    if workload.container.get("securityContext") != CONTAINER_SECURITY:
        yield f"has the container securityContext {workload.container.get('securityContext')}"
    for key in ("hostNetwork", "hostPID", "hostIPC", "hostUsers"):
        if key in workload.pod:
            yield f"has {key}"
    account = overlay.find("ServiceAccount", workload.name) or {}
    if workload.pod.get("serviceAccountName") != workload.name:
        yield f"runs as the ServiceAccount {workload.pod.get('serviceAccountName')}"
    if workload.pod.get("automountServiceAccountToken") or account.get("automountServiceAccountToken", True):
        yield "gets a token of the cluster"


def _pod(overlay: Overlay, workload: Workload) -> Faults:
    if workload.pod.get("enableServiceLinks", True):
        yield "has enableServiceLinks: a Service named gateway would set GATEWAY_PORT"
    if not workload.pod.get("shareProcessNamespace"):
        yield "has no shareProcessNamespace: a SIGTERM during its start would be ignored"
    if workload.labels.get(NAME) != workload.name:
        yield f"has pods with the name {workload.labels.get(NAME)}"


def _volumes(overlay: Overlay, workload: Workload) -> Faults:
    volumes = {volume["name"]: volume for volume in workload.pod.get("volumes", ())}
    mounts = {mount["mountPath"]: mount for mount in workload.container.get("volumeMounts", ())}
    temporary = TEMPORARY.get(workload.name, TEMPORARY_ELSEWHERE)
    if "/tmp" not in mounts or volumes["tmp"].get("emptyDir") != {"sizeLimit": temporary}:
        yield f"has no /tmp of {temporary}"
    secret = volumes.get("secrets", {}).get("secret", {})
    if secret.get("secretName") != workload.name or secret.get("defaultMode") != 0o440:
        yield f"has the secrets {secret}, not those of {workload.name} with the mode 0440"
    if not mounts.get(SECRETS, {}).get("readOnly"):
        yield f"does not see its secrets in {SECRETS}"


def _settings(overlay: Overlay, workload: Workload) -> Faults:
    """Each setting is one that the process reads; its secrets are files, and those that its role reads."""
    role = {**JOBS, **CRON_JOBS}.get(workload.name, workload.name)
    given = workload.environment
    for variable in given:
        row = config.BY_VARIABLE.get(variable) or config.BY_VARIABLE.get(variable.removesuffix("_FILE"))
        if row is None:
            yield f"sets {variable}, which is no setting"
        elif role not in row.roles:
            yield f"sets {variable}, which {role} does not read"
    wanted = {f"{row.variable}_FILE" for row in _secrets(role) if overlay.name != DEV or row.variable not in OUTSIDE}
    found = {variable for variable, value in given.items() if value.startswith(f"{SECRETS}/")}
    for variable in sorted(wanted - found):
        yield f"lacks {variable}"
    for variable in sorted(found - wanted):
        yield f"holds {variable}, which it has no use for"
    for row in config.TABLE:
        value = given.get(row.variable, "")
        if row.secret and value and not (row.attribute == "database_urls" and "@" not in value):
            yield f"says the secret {row.variable} in its environment"
    for row in _places(role):
        if not given.get(row.variable):
            yield f"lacks {row.variable}"
    held = {f"{SECRETS}/{key}" for key in overlay.secrets_of(workload.name)}
    read = {given[variable] for variable in found}
    for path in sorted(read - held):
        yield f"reads {path}, which its Secret does not hold"
    for path in sorted(held - read):
        yield f"holds {path} in its Secret and does not read it"


def _secrets(role: str) -> Iterator[Row]:
    """The settings that a process gets from its Secret."""
    for row in config.TABLE:
        is_place = row in _places(role)
        # Topology connects as the administrator alone; a shell is nothing for a cluster.
        is_spare = row.key == SHELL or (role == config.TOPOLOGY and row.variable == "AMQP_URI")
        if row.secret and role in row.roles and not is_place and not is_spare:
            yield row


def _places(role: str) -> list[Row]:
    """The databases of others, which a role opens as the reader or the operator: their URLs have no password."""
    own = {config.MIGRATE: config.DATABASES, config.AUDIT: ("ops",)}.get(role, (role,))
    return [
        row for row in config.TABLE if row.attribute == "database_urls" and role in row.roles and row.key not in own
    ]


# What holds for services.


def _replicas(overlay: Overlay, workload: Workload) -> Faults:
    fewest, most = replicas_of(overlay, workload)
    wanted = REPLICAS.get(workload.name, LATER)
    if overlay.name != DEV and (fewest, most) != wanted:
        yield f"has {fewest} to {most} replicas, not {wanted[0]} to {wanted[1]}"
    if overlay.name == DEV and (fewest, most) != (1, 1):
        yield f"has {fewest} to {most} replicas on one machine"


def replicas_of(overlay: Overlay, workload: Workload) -> tuple[int, int]:
    """The fewest and the most replicas that an overlay lets run."""
    for scaler in overlay.of("HorizontalPodAutoscaler"):
        if scaler["spec"]["scaleTargetRef"]["name"] == workload.name:
            return scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]
    replicas = workload.spec.get("replicas", 1)
    return replicas, replicas


def _ports(overlay: Overlay, workload: Workload) -> Faults:
    wanted = {"probes": config.PORTS[config.PROBES.get(workload.name, workload.name)]}
    wanted |= {"http": config.PORTS[workload.name]} if workload.name in PUBLIC else {}
    found = {port["name"]: port["containerPort"] for port in workload.container.get("ports", ())}
    if found != wanted:
        yield f"has the ports {found}, not {wanted}"
    if workload.environment.get("HOST") != "0.0.0.0":
        yield f"listens on {workload.environment.get('HOST')}, where no probe reaches it"


def _probes(overlay: Overlay, workload: Workload) -> Faults:
    for name, wanted in PROBES.items():
        probe = dict(workload.container.get(name, {}))
        got = probe.pop("httpGet", {})
        if got.get("port") != "probes" or {"path": got.get("path"), **probe} != wanted:
            yield f"has the {name} {got} {probe}, not {wanted}"


def _stop(overlay: Overlay, workload: Workload) -> Faults:
    gone = workload.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    wanted = GONE_S if workload.name in PUBLIC else 0
    if gone != wanted:
        yield f"sleeps {gone} s before it stops, not {wanted} s"
    grace = workload.pod.get("terminationGracePeriodSeconds")
    if grace != GRACE_S + wanted:
        yield f"is killed after {grace} s, not {GRACE_S + wanted} s"
    longest = max(consumer.FINISH_S, rpc.FINISH_S, relay.FINISH_S, webserver.DRAIN_S)
    if not longest <= STOP_TIMEOUT_S < GRACE_S:
        yield f"may need {longest} s to stop, which the supervisor ends after {STOP_TIMEOUT_S} s"


def _rolling(overlay: Overlay, workload: Workload) -> Faults:
    if workload.resource["kind"] == "Deployment" and workload.spec.get("strategy") != ROLLING:
        yield f"has the strategy {workload.spec.get('strategy')}"
    for key, wanted in {"minReadySeconds": 10, "progressDeadlineSeconds": 300}.items():
        if workload.spec.get(key) != wanted:
            yield f"has {key} {workload.spec.get(key)}, not {wanted}"
    if workload.spec["selector"] != {"matchLabels": {NAME: workload.name}}:
        yield f"has the selector {workload.spec['selector']}"


def _spread(overlay: Overlay, workload: Workload) -> Faults:
    constraints = workload.pod.get("topologySpreadConstraints", ())
    by_name = all(NAME in constraint.get("matchLabelKeys", ()) for constraint in constraints)
    if [constraint["topologyKey"] for constraint in constraints] != SPREAD or not by_name:
        yield "is not spread over zones and hosts"
    elif any(constraint["maxSkew"] != 1 for constraint in constraints):
        yield "is spread with a maxSkew other than 1"


def _disruptions(overlay: Overlay, workload: Workload) -> Faults:
    budget = overlay.find("PodDisruptionBudget", workload.name)
    wanted = {"maxUnavailable": 1, "selector": {"matchLabels": {NAME: workload.name}}}
    if budget and budget["spec"] != wanted:
        yield f"has the PodDisruptionBudget {budget['spec']}"


def _step(overlay: Overlay, workload: Workload) -> Faults:
    jobs = {**dict.fromkeys(JOBS, "preparation"), **dict.fromkeys(PUBLIC, "edge")}
    wanted = jobs.get(workload.name, "service")
    if workload.resource["metadata"].get("labels", {}).get(STEP) != wanted:
        yield f"is not applied in the step {wanted}"


# What holds for Jobs.


def _ends(overlay: Overlay, workload: Workload) -> Faults:
    if workload.pod.get("restartPolicy") != "Never":
        yield f"has the restartPolicy {workload.pod.get('restartPolicy')}: the log of a failure would be lost"
    if workload.name in CRON_JOBS and workload.spec.get("concurrencyPolicy") != "Forbid":
        yield "may run twice at once"


# What holds for an overlay as a whole.


def _services(overlay: Overlay) -> Faults:
    for service in overlay.of("Service"):
        name = service["metadata"]["name"]
        if service["spec"].get("selector", {}).get(NAME) in {row.name for row in SERVICES} - set(PUBLIC):
            yield f"{overlay.file_of('Service', name)}: the Service {name} leads to what only probes may reach"
    for name in PUBLIC:
        if overlay.find("Service", name) is None:
            yield f"{overlay.file_of('Service', name)}: there is no Service {name}"


def _servers(overlay: Overlay) -> Faults:
    """The servers of dev are those of docker-compose.yml, with as few rights as everything in the namespace."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    for server in map(Workload, overlay.of("StatefulSet")):
        file = overlay.file_of("StatefulSet", server.name)
        if server.container["image"].partition("@")[0] != compose[server.name]["image"].partition("@")[0]:
            yield f"{file}: {server.name} has the image {server.container['image']}, and not that of docker-compose.yml"
        pod = server.pod.get("securityContext", {})
        rights = {key: pod.get(key) for key in ("runAsNonRoot", "seccompProfile")}
        if rights != {key: POD_SECURITY[key] for key in rights}:
            yield f"{file}: {server.name} has the securityContext {pod}"
        if server.container.get("securityContext") != CONTAINER_SECURITY:
            yield f"{file}: {server.name} has the container securityContext {server.container.get('securityContext')}"
        if server.pod.get("enableServiceLinks", True) or server.pod.get("automountServiceAccountToken", True):
            yield f"{file}: {server.name} gets a token of the cluster, or variables for each Service"


def _connections(overlay: Overlay, rows: Sequence[Service]) -> Faults:
    """All services at their most, and one new pod of each, find a connection; so do their roles."""
    file, allowed = _max_connections(overlay)
    needed = OTHER_CONNECTIONS
    by_name = {row.name: row for row in rows}
    given = _migrate_replicas(overlay)
    for workload in overlay.services():
        row = by_name.get(workload.name)
        if row and row.has_database:
            pods = replicas_of(overlay, workload)[1] + 1
            needed += row.connections * pods
            if pods > given:
                where = overlay.file_of("Job", "migrate")
                yield f"{where}: migrate gives the role of {row.name} connections for {given} pods, and {pods} may run"
    if needed > allowed:
        yield f"{file}: max_connections is {allowed}, and all services together may open {needed}"


def _migrate_replicas(overlay: Overlay) -> int:
    migrate = overlay.find("Job", "migrate")
    words = Workload(migrate).arguments if migrate else []
    return int(words[words.index("--replicas") + 1]) if "--replicas" in words else services.REPLICAS


def _max_connections(overlay: Overlay) -> tuple[str, int]:
    if cluster := overlay.find("Cluster", "postgres"):
        return overlay.file_of("Cluster", "postgres"), int(
            cluster["spec"]["postgresql"]["parameters"]["max_connections"]
        )
    words = Workload(overlay.find("StatefulSet", "postgres") or {}).arguments
    (found,) = [word.partition("=")[2] for word in words if word.startswith("max_connections=")]
    return overlay.file_of("StatefulSet", "postgres"), int(found)


Rule = Callable[[Overlay, Workload], Faults]
OF_EVERY: tuple[Rule, ...] = (_command, _resources, _security, _pod, _volumes, _settings, _step)
OF_SERVICES: tuple[Rule, ...] = (
    _replicas,
    _ports,
    _probes,
    _stop,
    _rolling,
    _spread,
    _disruptions,
)
OF_JOBS: tuple[Rule, ...] = (_ends,)
