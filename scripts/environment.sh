# Sourced by quickstart.sh and run_tests.sh. Uses the active virtual environment or creates .venv;
# `need FILE...` installs requirements files, only if any has changed.
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
  if [ ! -e .venv/bin/activate ]; then
    echo "creating a virtual environment in .venv"
    python3 -c 'import sys; sys.exit("Python 3.10 or newer is needed" if sys.version_info < (3, 10) else 0)'
    python3 -m venv .venv  # on Debian and Ubuntu a separate package: python3-venv
  fi
  . .venv/bin/activate
  own_environment=yes
fi

need() {
  local stamp file
  stamp="$(python -c 'import sys; print(sys.prefix)')/.pix2pixHD-$({ echo "$@"; cat requirements*.txt; } | cksum | tr ' ' '-')"
  [ -e "$stamp" ] && return
  echo "installing $*"
  for file in "$@"; do python -m pip install --quiet --disable-pip-version-check -r "$file"; done
  touch "$stamp"
}
