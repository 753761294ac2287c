#!/bin/bash
# GRPO on several machines by SLURM: the last generates with vLLM, the others train one policy, sharded by FSDP2.
# NOT RUN on a cluster or a card: written from the pages of SLURM, accelerate and vLLM. docs/scaling.md
#
#   sbatch --nodes 3 --gpus-per-node 8 examples/slurm.sh configs/multi_node.yaml [section.key=value ...]
#
# The folder it is started in (and with it run.output_dir) has to be on a file system that every machine sees. A key
# keeps others from the server; VLLM_API_KEY in the environment takes the place of the one that is drawn here.
#SBATCH --job-name=llm-grpo
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --signal=B:TERM@600        # the step in hand is finished and saved before the time is over; then: --resume
set -euo pipefail

CONFIG=$1; shift
PORT=8000
mapfile -t HOSTS < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
TRAINERS=$((${#HOSTS[@]} - 1)); SERVER=${HOSTS[$TRAINERS]}; HEAD=${HOSTS[0]}
CARDS=${SLURM_GPUS_ON_NODE:-8}
export VLLM_API_KEY=${VLLM_API_KEY:-$(head -c 32 /dev/urandom | base64 | tr -dc A-Za-z0-9)}

srun --nodes 1 --ntasks 1 --nodelist "$SERVER" --export ALL \
  python src/serve.py --rollouts --config "$CONFIG" --host 0.0.0.0 --port $PORT -- --tensor-parallel-size "$CARDS" &
SERVING=$!
trap 'kill $SERVING 2>/dev/null' EXIT

for _ in $(seq 180); do   # a large base takes minutes to load
  curl --silent --fail "http://$SERVER:$PORT/health" > /dev/null && break
  kill -0 $SERVING          # ends here where the server did
  sleep 10
done

srun --nodes "$TRAINERS" --ntasks "$TRAINERS" --nodelist "$(IFS=,; echo "${HOSTS[*]:0:$TRAINERS}")" --export ALL \
  bash -c 'accelerate launch --config_file configs/accelerate/fsdp2.yaml --num_machines '"$TRAINERS"' \
    --num_processes '"$((TRAINERS * CARDS))"' --machine_rank $SLURM_PROCID --main_process_ip '"$HEAD"' \
    --main_process_port 29500 src/train.py "$@"' train --config "$CONFIG" \
    rollouts.engine=server rollouts.url="http://$SERVER:$PORT" "$@" &
TRAINING=$!
trap 'kill -TERM $TRAINING; wait $TRAINING' TERM
wait $TRAINING
