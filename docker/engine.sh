#!/usr/bin/env bash
# A Docker engine for tests, beside the system and not part of it: for a Debian machine without one, as root.
#
#   eval "$(docker/engine.sh start)"    starts it, installing it first, and sets DOCKER_HOST and DOCKER_CONFIG
#   docker/engine.sh standin            makes the image that stands in for the CUDA base
#   docker/engine.sh stop
#
# Debian's stable engine is too old for `build --check` and named build contexts, so testing's is unpacked (not
# installed) into the engine's own folder, a registry to publish to beside it; runc, tini, iptables and mmdebstrap
# come from the running release.
# A do-nothing nvidia-container-runtime-hook on the daemon's PATH makes the real `--gpus` path testable without
# a GPU: the daemon accepts it and sets NVIDIA_VISIBLE_DEVICES.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
engine=${FLUXBENCH_ENGINE:-$here/.work/engine}
standin=${FLUXBENCH_STANDIN:-fluxbench-standin}
export DOCKER_HOST=unix://$engine/docker.sock DOCKER_CONFIG=$engine/cli

install_engine() {
    [ -x "$engine/root/usr/sbin/dockerd" ] && return
    echo "installing a Docker engine into $engine" >&2
    mkdir -p "$engine"/{apt/lists/partial,apt/archives/partial,root,bin,data,exec,cli/cli-plugins}
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        mmdebstrap runc iptables tini >"$engine/apt/log" 2>&1
    # The machine's own source of packages, of the suite `testing`.
    sed -n '1,/^$/p' /etc/apt/sources.list.d/debian.sources | sed 's/^Suites:.*/Suites: testing/' \
        >"$engine/apt/testing.sources"
    local options=(
        -o "Dir::Etc::sourcelist=$engine/apt/testing.sources" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$engine/apt/lists" -o "Dir::Cache::archives=$engine/apt/archives"
        -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
    )
    apt-get "${options[@]}" update >>"$engine/apt/log" 2>&1
    (cd "$engine/apt/archives" &&
        apt-get "${options[@]}" download docker.io docker-cli docker-buildx containerd docker-registry \
        >>"$engine/apt/log" 2>&1)
    for package in "$engine"/apt/archives/*.deb; do dpkg-deb -x "$package" "$engine/root"; done
    ln -sf "$engine/root/usr/libexec/docker/cli-plugins/docker-buildx" "$engine/cli/cli-plugins/"
    printf '#!/bin/sh\nexit 0\n' >"$engine/bin/nvidia-container-runtime-hook"
    chmod +x "$engine/bin/nvidia-container-runtime-hook"
}

answers() { docker version >/dev/null 2>&1; }

start() {
    install_engine
    export PATH=$engine/bin:$engine/root/usr/bin:$engine/root/usr/sbin:$PATH
    if ! answers; then
        # live-restore: containers outlive the daemon, as on a well-kept host.
        setsid nohup dockerd --host "$DOCKER_HOST" --data-root "$engine/data" --exec-root "$engine/exec" \
            --pidfile "$engine/dockerd.pid" --init-path "$(command -v tini-static)" --live-restore \
            >"$engine/dockerd.log" 2>&1 </dev/null &
        for _ in $(seq 60); do answers && break || sleep 0.5; done
        answers || { tail -5 "$engine/dockerd.log" >&2; exit 1; }
    fi
    echo "export DOCKER_HOST=$DOCKER_HOST DOCKER_CONFIG=$DOCKER_CONFIG FLUXBENCH_ENGINE=$engine" \
        "PATH=$engine/root/usr/bin:\$PATH"
}

stop() {
    [ -f "$engine/dockerd.pid" ] || return 0
    local pid
    pid=$(cat "$engine/dockerd.pid")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 60); do kill -0 "$pid" 2>/dev/null && sleep 0.5 || break; done
    # With live-restore the daemon leaves its data mounted on itself, and the folder could not be removed.
    umount "$engine/data" 2>/dev/null || true
}

# Debian with Python; this machine's certificates, and its wheel of torch without CUDA where it has one, so that
# builds reach the package registry as the machine itself does.
make_standin() {
    docker image inspect "$standin" >/dev/null 2>&1 && return
    local folder
    folder=$(mktemp -d)
    mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates \
        "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$folder/root.tar"
    docker import "$folder/root.tar" "$standin:raw" >/dev/null
    rm "$folder/root.tar"
    cp -L /etc/ssl/certs/ca-certificates.crt "$folder/"
    mkdir "$folder/wheels"
    [ -z "${PIP_FIND_LINKS:-}" ] || cp "$PIP_FIND_LINKS"/torch-*.whl "$folder/wheels/" 2>/dev/null || true
    printf '%s\n' "FROM $standin:raw" \
        'COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt' 'COPY wheels /opt/wheels' \
        'ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt' \
        'ENV PIP_FIND_LINKS=/opt/wheels' >"$folder/Dockerfile"
    docker build --quiet --tag "$standin" "$folder"
    rm -r "$folder"
}

case ${1:-} in
start) start ;;
stop) stop ;;
standin) make_standin ;;
*) sed -n '2,6p' "$0"; exit 2 ;;
esac
