#!/bin/bash
# Several machines under Slurm. In the folder of the examples, with the flags of the script:
#     sbatch accelerate/slurm.sh --model_name_or_path google-bert/bert-base-uncased --train_file train.csv --do_train ...
# One task per machine starts a process for each GPU. Files and --output_dir are on a disk that all machines share.
#SBATCH --job-name=hf_focal
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=02:00:00
set -euo pipefail

read -r MAIN_PROCESS_IP < <(scontrol show hostnames "$SLURM_JOB_NODELIST") # the first of them
MAIN_PROCESS_PORT=$((20000 + SLURM_JOB_ID % 10000)) # two jobs on one machine would collide on a fixed port
NUM_PROCESSES=$((SLURM_NNODES * SLURM_GPUS_ON_NODE))
export MAIN_PROCESS_IP MAIN_PROCESS_PORT NUM_PROCESSES

# The shell of each task reads SLURM_NODEID, which is only known there.
srun bash -c 'accelerate launch --config_file accelerate/multi_node.yaml \
    --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" --num_processes "$NUM_PROCESSES" \
    --main_process_ip "$MAIN_PROCESS_IP" --main_process_port "$MAIN_PROCESS_PORT" \
    run_text_classification.py "$@"' task "$@"
