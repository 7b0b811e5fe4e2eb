# Spinlane: build, try, test and measure. `make demo` is the place to start.
export PATH := $(HOME)/.cargo/bin:$(PATH)
CARGO ?= cargo

.PHONY: all demo test soak loom fuzz bench readme-table bpf fmt fmt-check lint doc packages bench-packages root

all: | packages
	$(CARGO) build --release --workspace

# A node in namespaces, pods attached by the plugin, traffic side by side with
# a Linux bridge. Removes everything when it ends.
demo: root | packages
	$(CARGO) build --release --bins
	@target/release/spinlane demo

# The whole suite. The programs come first: whole-system tests run them.
test: root | packages
	$(CARGO) build --workspace
	$(CARGO) test --workspace --no-fail-fast

# Everything at once between nodes for so many seconds, with the programs as
# they are shipped; frames are accounted for at the end.
SOAK_SECONDS ?= 600
soak: root | packages
	$(CARGO) build --release --bins
	SPINLANE_SOAK_SECONDS=$(SOAK_SECONDS) $(CARGO) test --release -p spinlane-tests --test soak -- --nocapture

# What threads share, in every order of its steps.
loom: | packages
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom \
		$(CARGO) test -p spinlane-dataplane --lib loom_

# Strangers' bytes for so many seconds each, led by what they reach. What is
# found stays in fuzz/corpus-found, what fails in fuzz/crash-*. The compiler's
# own pass counts the edges, so that the pinned one does.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= parse process configuration capture_filter manifests cni
fuzz: export RUSTFLAGS = --cfg fuzzing -Cdebug-assertions -Cpasses=sancov-module \
	-Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
	-Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares
fuzz:
	@.ci/packages fuzz
	@.ci/cargo
	@cd fuzz && host=$$($(CARGO) -vV | sed -n 's/^host: //p') && \
	$(CARGO) build --release --target $$host $(FUZZ_TARGETS:%=--bin %) && \
	for target in $(FUZZ_TARGETS); do \
		mkdir -p corpus-found/$$target && \
		target/$$host/release/$$target -max_total_time=$(FUZZ_SECONDS) -timeout=20 \
			-print_final_stats=1 -artifact_prefix=crash-$$target- \
			corpus-found/$$target corpus/$$target || exit 1; \
	done

# The standard comparison on this machine, kept in perf/results. `make
# readme-table` prints the newest one's table as it stands in README.md.
bench: root | bench-packages
	$(CARGO) build --release --bins
	@target/release/spinlane-perf compare --seconds 0.5 --warm-up 0.25 --results perf/results

readme-table:
	@$(CARGO) run -q --release -p spinlane-perf -- report --readme \
		"$$(ls -t perf/results/*.json | head -n 1)"

fmt:
	$(CARGO) fmt --all

fmt-check:
	$(CARGO) fmt --all -- --check

lint: | packages
	$(CARGO) clippy --workspace --all-targets -- -D warnings

doc: | packages
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps

packages:
	@.ci/packages
	@.ci/cargo

# What only comparisons need, on top.
bench-packages: packages
	@.ci/packages bench

root:
	@[ "$$(id -u)" = 0 ] || { echo "this needs root: it makes network namespaces and loads XDP programs" >&2; exit 1; }

# The XDP programs' objects, from their sources; the recorded hashes let a test
# notice when one changed without the other.
bpf:
	cd dataplane/bpf && for program in port uplink pod; do \
		clang -O2 -g -Wall -target bpf -ffile-prefix-map="$$PWD"=. -c $$program.bpf.c -o $$program.bpf.o \
		&& llvm-strip -g $$program.bpf.o && cat *.h $$program.bpf.c | sha256sum | cut -d' ' -f1 > $$program.bpf.sha256 || exit 1; done
