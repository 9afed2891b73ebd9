"""The number of threads in a container, by files like those of the kernel."""

from pathlib import Path

import pytest

from plugrad.backends import threads


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


VERSION_2, VERSION_1 = "0::/a/b\n", "5:memory:/a/b\n3:cpu,cpuacct:/a/b\n0::/\n"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": VERSION_2}, None),
        ({"proc/self/cgroup": VERSION_2, "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": VERSION_2, "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 1.5),
        (
            {
                "proc/self/cgroup": VERSION_2,
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/cpu.max": "400000 100000\n",
            },
            3,
        ),
        # The group of the host is the root of the container.
        ({"proc/self/cgroup": VERSION_2, "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": VERSION_2, "sys/fs/cgroup/a/b/cpu.max": "damaged"}, None),
        (
            {
                "proc/self/cgroup": VERSION_1,
                "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": VERSION_1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            2.5,
        ),
        (
            {
                "proc/self/cgroup": VERSION_1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_quotas_of_control_groups(files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    write(tmp_path, files)
    assert threads.quota_of_container(tmp_path) == quota


@pytest.mark.parametrize(("quota", "count"), [(None, 6), (0.2, 1), (1.5, 2), (4.0, 4), (64.0, 6)])
def test_the_number_of_threads_follows_affinity_and_quota(
    quota: float | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda process: set(range(6)))
    monkeypatch.setattr(threads, "quota_of_container", lambda: quota)
    assert threads.count.__wrapped__() == count
    monkeypatch.setenv(threads.VARIABLE, "9")
    assert threads.count.__wrapped__() == 9
