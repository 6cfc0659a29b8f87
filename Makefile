# Each target makes the virtual environment it needs; PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
UNITS = /etc/systemd/system

run: $(VENV)/run
	$(VENV)/bin/python -m tbmon

test: $(VENV)/dev
	$(VENV)/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# What needs no Docker Engine, no nats-server and no browser, in well under a minute.
quick: $(VENV)/dev
	$(VENV)/bin/python -m pytest --quick -n 2 --dist loadfile

lint: $(VENV)/dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --strict tbmon.py aggregator.py tests

# BENCH holds words for the benchmark: make bench BENCH=--help
bench: $(VENV)/dev
	$(VENV)/bin/python tests/bench.py $(BENCH)

# The long form of the fault suite and of the histories: some four hours, of which one is the load alone.
soak: $(VENV)/dev
	TBMON_SOAK=1 $(VENV)/bin/python -m pytest tests/faults tests/test_truth.py
	$(VENV)/bin/python tests/bench.py --soak --only network

image:
	docker build -t tbmon --build-arg VERSION=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' tbmon.py) \
		--build-arg REVISION=$$(git rev-parse --verify --quiet HEAD || echo unknown) .

# For root: the program in /opt/tbmon, the units, and a password for log and task data if there is none.
# DESTDIR=/some/folder puts all of it there and starts nothing.
install-service:
	install -d $(DESTDIR)/opt/tbmon $(DESTDIR)$(UNITS) $(DESTDIR)/etc/tbmon
	$(PYTHON) -m venv $(DESTDIR)/opt/tbmon/venv
	$(DESTDIR)/opt/tbmon/venv/bin/python -m pip install --quiet -r requirements.txt
	install -m 644 tbmon.py aggregator.py $(DESTDIR)/opt/tbmon
	cp -R static $(DESTDIR)/opt/tbmon/
	$(DESTDIR)/opt/tbmon/venv/bin/python -m compileall -q $(DESTDIR)/opt/tbmon/*.py
	install -m 644 deploy/*.service $(DESTDIR)$(UNITS)
	test -s $(DESTDIR)/etc/tbmon/task-data-password || (umask 077 && $(PYTHON) -c \
		'import secrets; print(secrets.token_urlsafe(18))' > $(DESTDIR)/etc/tbmon/task-data-password)
	test -n "$(DESTDIR)" || (systemctl daemon-reload && systemctl enable tbmon && systemctl restart tbmon)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || (echo "make: a virtual environment needs Python's venv: apt-get install python3-venv" >&2; rm -rf $(VENV); false)

$(VENV)/run: requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/dev: requirements.txt requirements-dev.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet -r requirements-dev.txt
	touch $@

.PHONY: run test quick lint bench soak image install-service
