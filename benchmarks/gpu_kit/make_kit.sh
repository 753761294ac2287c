#!/usr/bin/env bash
# What a bare machine with a Hopper card lacks to run gpu_check.py without a network, packed small: three archives of 10,
# 31 and 1 MiB. Meant for Python 3.12 with torch 2.11 (CUDA 13), transformers, peft and accelerate there already.
#
#   bash benchmarks/gpu_kit/make_kit.sh [FOLDER]     (default .kit; needs pip with an index, xz, strip, 3 GB of disk)
#   bash benchmarks/gpu_kit/run_check.sh 560         (on that machine)
#
# kit-a: Unsloth, TRL, bitsandbytes and what our package needs. kit-b: vLLM and what a dense model with a LoRA makes it
# import. kit-c: what serve.py needs besides. Code for other cards is left out or emptied (prune_fatbin.py). Tried on an
# H100 and an H200.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-.kit} work=${WORK:-$(mktemp -d)} pip=${PIP:-python3 -m pip}

pinned() { for name in "$@"; do grep -E "^$name==" requirements.txt; done; }  # one place for versions: requirements.txt

mapfile -t ours < <(pinned trl datasets bitsandbytes unsloth unsloth_zoo math-verify)
mapfile -t engine < <(pinned vllm vllm-bnb-plugin)
ours+=(dill==0.4.1 multiprocess==0.70.19 pydantic==2.14.4 pydantic_core==2.50.5 typing-inspection annotated-types
       python-dotenv latex2sympy2_extended==1.11.0 antlr4-python3-runtime==4.13.2 rapidfuzz cut_cross_entropy==25.1.1
       tyro==1.0.17 docstring_parser typeguard msgspec rich markdown-it-py mdurl pygments)
engine+=(apache-tvm-ffi==0.1.11 oss-harmony==0.0.11 cbor2 pyzmq pybase64 cachetools openai jiter distro sniffio httpx2
         httpcore2 truststore llguidance==1.7.6 xgrammar==0.2.7 fastapi==0.136.3 starlette opentelemetry-api
         opentelemetry-sdk opentelemetry-semantic-conventions partial-json-parser compressed-tensors==0.17.0 loguru)
server=(uvicorn httptools websockets watchfiles email-validator dnspython jmespath model-hosting-container-standards
        prometheus-fastapi-instrumentator pydantic-extra-types pydantic-settings python-multipart setproctitle orjson)

fetch() {  # fetch FOLDER DIST...: wheels for Python 3.12 on x86-64 Linux
  local folder=$1 platforms=(--platform manylinux1_x86_64 --platform manylinux2014_x86_64)
  for minor in $(seq 5 39); do platforms+=(--platform "manylinux_2_${minor}_x86_64"); done
  mkdir -p "$folder"
  for dist in "${@:2}"; do
    $pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --abi cp312 --abi abi3 \
      --abi none "${platforms[@]}" -d "$folder" "$dist"
  done
}

unpack() {  # unpack WHEELS SITE: all but tests, licences and code for what is not run (MoE, MLA, fp4, other cards)
  rm -rf "$2" && mkdir -p "$2"
  python3 - "$1" "$2" <<'P'
import re, sys, zipfile
from pathlib import Path
LEFT_OUT = re.compile("|".join([
    r"^studio/", r"^unsloth_cli/", r"/tests?/", r"\.pyi$", r"^bin/", r"\.dist-info/(licenses/|LICENSE)", r"\.data/",
    r"^bitsandbytes/libbitsandbytes_(?!cuda130\.so|cpu\.so)",
    r"^vllm/(vllm-rs|_moe_C|_flashmla|_flashkda|_deepselect|_qutlass|_rust_tool_parser)",
    r"^vllm/vllm_flash_attn/_vllm_fa2_C",  # a Hopper takes the third
    r"^vllm/third_party/(deep_gemm|fmha_sm100|flashmla|tml_fa4)/", r"^vllm/entrypoints/serve/instrumentator/static/",
    r"^vllm/model_executor/layers/(fused_moe|quantization/utils)/configs/", r"^vllm/kernels/helion/configs/",
    r"^(vllm|unsloth|unsloth_zoo|bitsandbytes|openai)-[^/]*\.dist-info/RECORD",  # xgrammar finds its library by its own
]))
for file in sorted(Path(sys.argv[1]).glob("*.whl")):
    with zipfile.ZipFile(file) as wheel:
        wheel.extractall(sys.argv[2], [name for name in wheel.namelist() if not LEFT_OUT.search(name)])
P
}

prune() {  # prune SITE: the card's own code alone, no symbol tables
  local keep='ELi(64|128)ENS_10bfloat16_tEf|FlashAttnFwdCombine|prepare_varlen'  # attention heads of 64 and 128
  find "$1" -name '*.so*' -type f | while read -r library; do
    case $library in
      *_vllm_fa3_C*) python3 benchmarks/gpu_kit/prune_fatbin.py "$library" --keep "$keep" ;;
      *_C_stable_libtorch* | *libbitsandbytes_cuda*) python3 benchmarks/gpu_kit/prune_fatbin.py "$library" ;;
    esac
    strip --strip-unneeded "$library" 2> /dev/null || true
  done
}

pack() {  # pack SITE ARCHIVE
  tar -C "$1" --sort=name --owner=0 --group=0 --mtime=@0 -cf - . | xz -9 -T2 > "$2"
}

mkdir -p "$out"
fetch "$work/wheels-a" "${ours[@]}"
fetch "$work/wheels-b" "${engine[@]}"
fetch "$work/wheels-c" "${server[@]}"
for kit in a b c; do
  unpack "$work/wheels-$kit" "$work/site-$kit"
  prune "$work/site-$kit"
  pack "$work/site-$kit" "$out/kit-$kit.tar.xz"
done
ls -l "$out"
