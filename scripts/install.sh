#!/usr/bin/env bash
# Sets up .venv with everything asyncrl needs. Safe to run again; does nothing when pyproject.toml has not changed.
#   EXTRA=cpu | gpu   which vLLM to install (default: as last time; at first gpu where nvidia-smi finds a card, else cpu)
#   EXTRA=cpu,sglang  SGLang beside vLLM, on a CPU (docs/sglang.md)
#   EXTRA=sglang      SGLang in place of vLLM, for GPUs, without what the tests need: the two need different torches
#   PYTHON=python3.12 which interpreter (default: python3; 3.11 to 3.13)
set -euo pipefail
cd "$(dirname "$0")/.."

least_driver=580 # NVIDIA's first driver for CUDA 13, for which the torch in constraints-gpu.txt is built

python="${PYTHON:-python3}"
stamp=.venv/.asyncrl-installed
last="$(cut -d ' ' -f 1 "$stamp" 2>/dev/null || true)"
asked="${EXTRA:-${last:-$(nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)}}"
extra="$asked" with_sglang=
case "$extra" in
cpu | gpu | sglang) ;;
cpu,sglang) extra=cpu with_sglang=1 ;;
gpu,sglang | sglang,gpu)
  echo "EXTRA=$extra: vLLM 0.32 needs torch 2.13 and SGLang 0.5.23 torch 2.14; take EXTRA=sglang in another checkout" >&2
  exit 2
  ;;
*)
  echo "EXTRA=$extra: asyncrl installs for cpu or for gpu, which is NVIDIA; it has never run on AMD (ROCm) or Ascend (CANN)" >&2
  exit 2
  ;;
esac
want="$asked $(cat pyproject.toml constraints-*.txt scripts/install.sh 2>/dev/null | cksum)"
[ "$(cat "$stamp" 2>/dev/null || true)" = "$want" ] && exit 0

if [ "$extra" != cpu ]; then
  driver="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 || true)"
  if [ -z "$driver" ]; then
    echo "no NVIDIA driver answers on this machine; where the run goes it has to be $least_driver or later" >&2
  elif [ "${driver%%.*}" -lt "$least_driver" ]; then
    echo "NVIDIA's driver here is $driver, and the GPU build (CUDA 13) needs $least_driver or later; update it, or EXTRA=cpu make install" >&2
    exit 1
  fi
elif [ -z "${EXTRA:-$last}" ]; then
  for other in "AMD (ROCm):/dev/kfd:rocm-smi" "Ascend (CANN):/dev/davinci_manager:npu-smi"; do
    IFS=: read -r name file tool <<<"$other"
    if [ -e "$file" ] || command -v "$tool" >/dev/null; then
      echo "found $name: asyncrl has never run on it; this installs the CPU build" >&2
    fi
  done
fi

"$python" -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"asyncrl needs Python 3.11 to 3.13, found {v[0]}.{v[1]}; set PYTHON=/path/to/python3.11")'
[ -x .venv/bin/python ] || "$python" -m venv .venv
[ -x .venv/bin/uv ] || .venv/bin/python -m pip install --quiet uv

# A CPU torch comes from a wheel folder where the machine names one, else from torch's own index (uv knows it).
# uv does not read pip's variable, so it is passed on.
options=(--python .venv/bin/python --compile-bytecode)
if [ "$extra" = sglang ]; then
  options+=(--no-config) # pyproject.toml leaves torchvision out, which SGLang needs
else
  options+=(--constraint "constraints-$extra.txt")
fi
if [ "$extra" = cpu ]; then
  links="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
  if [ -n "$links" ]; then options+=(--find-links "$links"); else options+=(--torch-backend=cpu); fi
fi
# reasoning-gym builds one of its packages from source; without a compiler its tests are skipped.
include="$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')"
extras="$extra"
if [ "$extra" != sglang ]; then extras+=",dev"; fi # SGLang and verifiers need different versions of openai
if [ "$extra" != sglang ] && command -v cc >/dev/null && [ -f "$include/Python.h" ]; then extras+=",environments"; fi
# Without bytecode vLLM takes three times as long to start.
env -u PYTHONDONTWRITEBYTECODE .venv/bin/uv pip install "${options[@]}" --editable ".[$extras]"
if [ -n "$with_sglang" ]; then
  # Its own demands are those of its GPU build (torch 2.14, CUDA kernels); on a CPU it runs with what vLLM has brought.
  env -u PYTHONDONTWRITEBYTECODE .venv/bin/uv pip install --python .venv/bin/python --compile-bytecode --no-deps \
    --requirement constraints-sglang-cpu.txt
fi
echo "$want" >"$stamp"
