#!/usr/bin/env bash
# What the executor tests need on this machine: Slurm with accounting, an SSH server, a Docker engine, shells, a browser.
# On Debian or Ubuntu as root it is installed; elsewhere those tests are skipped, unless REQUIRE_TESTBED is set.
set -euo pipefail
packages=(slurm-wlm slurmdbd munge mariadb-server openssh-server openssh-client rsync docker.io libslurm-dev gcc zsh fish chromium)
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done 2>/dev/null
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed, and not root on a Debian machine: ${missing[*]}" >&2
    [ -z "${REQUIRE_TESTBED:-}" ]
    exit
fi
# A policy of our own: the packages' daemons are not started, the tests start private ones.
policy=/usr/sbin/policy-rc.d
[ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' > "$policy"; chmod +x "$policy"; trap 'rm -f "$policy"' EXIT; }
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
