# `make` alone lists what there is. Everything that needs setting up sets up first, and does nothing when it is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory
PYTHON := .venv/bin/python
PREFIX ?= /opt/sandboxd
DESTDIR ?=
# Web servers start when their packages are installed: not on a person's machine.
TEST_PACKAGES := chromium busybox git strace $(if $(CI),caddy nginx-light)
# What is spelled right, and the shell scripts among it.
PARTS := Makefile README.md pyproject.toml .ci .github .setup bench rootfs sandboxd seccomp systemd tests
SCRIPTS := $(wildcard .ci/run .setup/lib .setup/demo .setup/install .setup/lock .setup/preflight .setup/setup \
	rootfs/default/finish rootfs/default/check systemd/sandboxd-cgroups tests/vm/recipes/machine/finish)
VM_PACKAGES := qemu-system-x86 mmdebstrap e2fsprogs

.PHONY: help
help: ## List the goals
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | while IFS=$$'\t' read -r goal what; do printf '  make %-14s %s\n' "$$goal" "$$what"; done

.PHONY: setup
setup: ## Check the machine, then install what is missing: system packages, .venv, sandboxd in it
	@.setup/setup

.PHONY: rootfs
rootfs: setup ## Build the rootfs `default` (about a minute, once)
	@.venv/bin/sandboxd rootfs build default

.PHONY: install
install: ## Install sandboxd as a systemd service (PREFIX=/opt/sandboxd; DESTDIR to lay it out elsewhere)
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" .setup/install

.PHONY: uninstall
uninstall: ## Take the service away again; state and configuration stay
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" .setup/install remove

.PHONY: demo
demo: rootfs ## Show the main job: a real program in a real sandbox
	@.setup/demo

.PHONY: lint
lint: setup ## Check style, types, spelling and shell scripts
	@source .setup/lib; install_packages shellcheck
	@echo "ruff check" >&2; .venv/bin/ruff check --quiet
	@echo "ruff format --check" >&2; .venv/bin/ruff format --check --quiet
	@echo "mypy" >&2; .venv/bin/mypy --no-error-summary
	@echo "codespell" >&2; .venv/bin/codespell $(PARTS)
	@echo "shellcheck" >&2; shellcheck --external-sources $(SCRIPTS)

# Standard input is closed to tests: a run at a terminal, under nohup and in CI are the same.
.PHONY: test
test: rootfs lint vm-packages test-packages ## Run every check and test but the soaks
	@SANDBOXD_VM_REQUIRED=1 $(PYTHON) -m pytest </dev/null

.PHONY: test-fast
test-fast: lint ## Run what takes seconds
	@$(PYTHON) -m pytest -m 'not slow and not long' </dev/null

.PHONY: test-long
test-long: rootfs test-packages ## Run the soaks, hundreds of kills and matrices (SEED=number repeats one)
	@SANDBOXD_TEST_SEED="$(SEED)" $(PYTHON) -m pytest -m long </dev/null

.PHONY: vm
vm: rootfs vm-packages ## Run the tests that need cgroup controllers and systemd, in a virtual machine (VM="-k oom" picks)
	@SANDBOXD_VM_REQUIRED=1 $(PYTHON) -m pytest tests/vm $(VM) </dev/null

.PHONY: vm-shell
vm-shell: rootfs vm-packages ## A shell in that machine, with this tree installed
	@$(PYTHON) -m tests.vm shell

.PHONY: vm-packages
vm-packages:
	@source .setup/lib; install_packages $(VM_PACKAGES)

.PHONY: test-apps
test-apps: rootfs test-packages ## Try Streamlit and JupyterLab behind previews, in a browser (builds a rootfs once)
	@$(PYTHON) -m pytest tests/apps/web_apps.py

.PHONY: test-packages
test-packages:
	@source .setup/lib; install_packages $(TEST_PACKAGES)

.PHONY: bench-previews
bench-previews: rootfs ## Measure previews beside nginx, haproxy and socat (BENCH="--quick" is a minute)
	@source .setup/lib; install_packages wrk nginx-light haproxy socat
	@$(PYTHON) -m bench.previews $(BENCH)

.PHONY: bench-network
bench-network: rootfs ## Measure a sandbox's link beside plain veth with NAT, in namespaces of its own (BENCH="--quick")
	@$(PYTHON) -m bench.network $(BENCH)

.PHONY: bench
bench: rootfs ## Measure beside bwrap, crun, runc, podman, and docker where it is installed (BENCH="--quick" is a minute)
	@source .setup/lib; install_packages bubblewrap util-linux crun runc podman
	@$(PYTHON) -m bench $(BENCH)

.PHONY: bench-cloudflare
bench-cloudflare: rootfs ## Measure what users of Cloudflare's npm client wait for (BENCH="--quick" is half a minute)
	@$(PYTHON) -m bench.cloudflare $(BENCH)

.PHONY: lock
lock: setup ## Write the lock files anew with the newest versions
	@.setup/lock

.PHONY: clean
clean: ## Remove .venv, caches and build output; the rootfs stays (sandboxd rootfs rm default)
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist bench/results
	@find sandboxd tests bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
