#!/usr/bin/env bash
# Start Ray on this host, as the cluster files want it:
#
#   start_ray.sh head                     the head, which runs gateway and coordinator
#   start_ray.sh worker ADDRESS=ROLE...   a worker of the host with this address, on premises
#   start_ray.sh worker                   a worker of a cloud, whose node type says what it is
#
# ROLE is prefill, decode, mixed or pool, with `:N` where N nodes have room. RAY_HEAD_IP is where
# the head is, for a worker. PD_VENV is the environment that setup_env.sh made, ~/pd-env if unset.
# PD_RAY_FLAGS are more flags to start it with.
set -euo pipefail

# Ray's ports let in whoever has the token of ~/.ray/auth_token, and nobody else.
export RAY_AUTH_MODE=token
# Processes of a server must not give way to whatever else runs on their host.
export RAY_worker_niceness=0 RAY_USAGE_STATS_ENABLED=0 RAY_kill_worker_timeout_milliseconds=500
# A host is given up when it could not be reached twelve times in a row.
export RAY_health_check_failure_threshold=12
programs=${PD_VENV:-$HOME/pd-env}/bin
PATH=$programs:$PATH
# Where logins look for programs: `ray down` runs `ray stop` in one.
line="export PATH=$programs:\$PATH"
grep -qxF "$line" ~/.bashrc 2>/dev/null || echo "$line" >>~/.bashrc
[[ -s ~/.ray/auth_token ]] || {
    echo "no token in ~/.ray/auth_token: make one with 'ray get-auth-token --generate' where" \
        "'ray up' runs, and start again" >&2
    exit 1
}
chmod 600 ~/.ray/auth_token
ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"

resources_of() { # role[:count] -> what `pd deploy` places by
    local role=${1%%:*} count=1
    [[ $1 == *:* ]] && count=${1##*:}
    echo "{\"pd_$role\": $count}"
}

kind=${1:?head or worker}
shift
ray stop >/dev/null 2>&1 || true
if [[ $kind == head ]]; then
    # Ray's second autoscaler takes the head for a worker on premises, where both are of one type:
    # one worker would never be started. The first one counts right.
    if [[ ${RAY_NODE_TYPE_NAME:-} == local.cluster.node ]]; then export RAY_enable_autoscaler_v2=0; fi
    # No node computes here: the head's cores are for requests.
    exec ray start --head --port=6379 --num-cpus=0 --num-gpus=0 --include-dashboard=false \
        --autoscaling-config="$HOME/ray_bootstrap_config.yaml" ${PD_RAY_FLAGS:-}
fi
resources='{}'
if (($#)); then
    mine=" $(hostname -I) "
    for each in "$@"; do
        if [[ $mine == *" ${each%%=*} "* ]]; then resources=$(resources_of "${each#*=}"); fi
    done
    [[ $resources != '{}' ]] || {
        echo "none of$mine is among: $*; say in worker_start_ray_commands what this host is" >&2
        exit 1
    }
fi
exec ray start --address="$RAY_HEAD_IP:6379" --resources="$resources" ${PD_RAY_FLAGS:-}
