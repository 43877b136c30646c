# Each target first gets the machine ready (.ci/setup says what it does, and does nothing twice).
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
ENV = eval "$$(.ci/setup env)"
.PHONY: help demo test test-attacks fuzz lint bench bench-sim bench-registry bench-trust validate

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 12

demo: ## one seeder and eight agents on loopback, a real image pulled through all of them at once
	@.ci/setup build
	@$(ENV); cargo build --workspace --bins; exec "$$CARGO_TARGET_DIR/debug/shoal-demo"

test: ## every test; as root it also installs the container runtimes that the tests drive
	@.ci/setup build test
	@$(ENV); cargo build --workspace --bins; cargo test --workspace

test-attacks: ## switches off one check after another: exactly the tests that guard it must turn red (an hour; FLAGS="--help")
	@.ci/setup build test
	@$(ENV); cargo build --workspace --bins; exec "$$CARGO_TARGET_DIR/debug/shoal-attacks" --scratch "$${XDG_CACHE_HOME:-$$HOME/.cache}/shoal/attacks" $(FLAGS)

fuzz: ## what strangers can send, bent at random for SECONDS (60) at each decoder (make test: a moment each)
	@.ci/setup build
	@$(ENV); SHOAL_FUZZ_SECONDS=$(or $(SECONDS),60) cargo test --workspace -- fuzz

lint: ## formatting, clippy, docs, licences and duplicate versions
	@.ci/setup build
	@$(ENV); cargo fmt --all --check; cargo clippy --workspace --all-targets -- -D warnings
	@$(ENV); RUSTDOCFLAGS="-D warnings" cargo doc --quiet --workspace --no-deps; .ci/deny

bench: ## what Shoal moves and what it costs, beside libtorrent, nginx and docker-registry (root; FLAGS="--help" lists flags)
	@.ci/setup build bench
	@$(ENV); cargo build --workspace --bins; exec "$$CARGO_TARGET_DIR/debug/shoal-bench" $(FLAGS)

bench-sim: ## what the simulator costs, beside SimGrid; figures in target/bench/sim.json (FLAGS="--short": a minute or two)
	@.ci/setup bench-sim
	@$(ENV); cargo build -p shoal-sim; exec "$$CARGO_TARGET_DIR/debug/shoal-sim" bench $(FLAGS)

validate: ## the simulator held against real agents in network namespaces: target/bench/validate.json (root)
	@.ci/setup build bench
	@$(ENV); cargo build --workspace --bins; exec "$$CARGO_TARGET_DIR/debug/shoal-validate" $(FLAGS)

bench-registry: ## the seeder as a plain registry beside docker-registry and nginx: target/bench/registry.json
	@.ci/setup build bench
	@$(ENV); cargo build --workspace --bins; exec "$$CARGO_TARGET_DIR/debug/shoal-registry-bench" $(FLAGS)

bench-trust: ## what memberships, capabilities and revocations cost: target/bench/trust.json
	@.ci/setup build
	@$(ENV); cargo build --workspace --bins; exec "$$CARGO_TARGET_DIR/debug/shoal-trust-bench" $(FLAGS)
