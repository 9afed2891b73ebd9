#!/usr/bin/env bash
# Python with plugrad on an emulated aarch64: tests/aarch64.sh FOLDER [ARGUMENTS OF PYTHON...], on Debian, as root.
# FOLDER keeps the emulated Debian and its packages, among them this copy of plugrad: remove FOLDER/packages to install
# another. docs/reliability.md says what was run.
set -euo pipefail

repository=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
root=$folder/root
packages=$folder/packages

if ! command -v debootstrap > /dev/null || ! command -v qemu-aarch64-static > /dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        debootstrap qemu-user-static binfmt-support > /dev/null
fi
# Linux starts programs for aarch64 by QEMU once it is registered, which needs the file system that a container may lack.
test -e /proc/sys/fs/binfmt_misc/register || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
test -e /proc/sys/fs/binfmt_misc/qemu-aarch64 || update-binfmts --enable qemu-aarch64

if ! test -e "$root/complete"; then
    rm -rf "$root"
    debootstrap --arch=arm64 --variant=minbase --include=python3 bookworm "$root" http://deb.debian.org/debian
    touch "$root/complete"
fi
version=$(chroot "$root" python3 -c 'import sys; print(*sys.version_info[:2], sep=".")')

if ! test -e "$packages/complete"; then
    rm -rf "$packages"
    scratch=$(mktemp -d)  # to build a wheel leaves files behind
    mkdir "$scratch/plugrad"
    git -C "$repository" ls-files -z --cached --others --exclude-standard |
        tar -C "$repository" --null -T - -cf - | tar -C "$scratch/plugrad" -xf -
    platforms=(--platform manylinux2014_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64)
    python3 -m pip install -q --only-binary :all: "${platforms[@]}" --python-version "$version" \
        --implementation cp --target "$packages" "$scratch/plugrad[test]"
    rm -rf "$scratch"
    touch "$packages/complete"
fi

# The mounts are gone when the command ends.
export root packages
exec unshare --mount bash -euc '
    mkdir -p "$root/packages"
    mount --bind "$packages" "$root/packages"
    mount -t proc proc "$root/proc"
    mount -t tmpfs tmpfs "$root/dev/shm"
    PYTHONPATH=/packages exec chroot "$root" python3 "$@"' - "$@"
