"""What copied GRPO notebooks and older TRL versions call things, and what says the same here today.

The names are those of Unsloth's and TRL's GRPO notebooks of 2025: GRPOConfig, FastLanguageModel, get_peft_model and
GRPOTrainer in their versions of then. Looked up only for a key that is unknown where it stands.
"""

from __future__ import annotations

_LENGTH = "grpo.max_completion_length (prompt and answer together: model.max_seq_length)"
_BATCH = "grpo.per_device_train_batch_size"
_OWN_DATA = "task, for example {name: jsonl, args: {path: data/mine.jsonl}}"

# Name of then -> what to write today.
MOVED = {
    "max_prompt_length": "model.max_seq_length less grpo.max_completion_length: a prompt is never cut, and "
                         "prompt.too_long says what becomes of one that does not fit",
    "max_new_tokens": _LENGTH,
    "max_tokens": _LENGTH,
    "response_length": _LENGTH,
    "max_length": "model.max_seq_length",
    "max_seq_length": "model.max_seq_length",
    "vllm_max_model_len": "model.max_seq_length",
    "gpu_memory_utilization": "model.gpu_memory_utilization",
    "evaluation_strategy": "evaluation.every_steps",
    "warmup_ratio": "grpo.warmup_steps, which below 1 is a share of all steps (0.1: the first tenth)",
    "epochs": "grpo.num_train_epochs, with grpo.max_steps: -1",
    "num_epochs": "grpo.num_train_epochs, with grpo.max_steps: -1",
    "steps": "grpo.max_steps",
    "batch_size": _BATCH,
    "train_batch_size": _BATCH,
    "per_gpu_train_batch_size": _BATCH,
    "num_sample_generations": "grpo.num_generations",
    "num_return_sequences": "grpo.num_generations",
    "group_size": "grpo.num_generations",
    "num_ppo_epochs": "grpo.num_iterations",
    "kl_coef": "grpo.beta",
    "init_kl_coef": "grpo.beta",
    "cliprange": "grpo.epsilon",
    "optimizer": "grpo.optim",
    "lr_scheduler": "grpo.lr_scheduler_type",
    "use_gradient_checkpointing": "grpo.gradient_checkpointing (true or false)",
    "use_liger_loss": "grpo.use_liger_kernel",
    "wandb_log_unique_prompts": "grpo.log_unique_prompts",
    "vllm_guided_decoding_regex": "grpo.vllm_structured_outputs_regex",
    "vllm_sampling_params": "grpo.temperature, top_p, top_k, min_p and repetition_penalty; the rest under "
                            "grpo.generation_kwargs",
    "fast_inference": "rollouts.engine: unsloth (or auto)",
    "unsloth_vllm_standby": "rollouts.standby",
    "model_name": "model.name",
    "model_name_or_path": "model.name",
    "pretrained_model_name_or_path": "model.name",
    "full_finetuning": "lora: null",
    "use_peft": "lora (null trains all weights)",
    "max_lora_rank": "lora.r",
    "rank": "lora.r",
    "lora_r": "lora.r",
    "lora_rank": "lora.r",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target_modules": "lora.target_modules",
    "random_state": "run.seed",
    "chat_template": "prompt.template",
    "system_prompt": "prompt.system",
    "reward_funcs": "rewards, a list of {name, weight, args}",
    "reward_functions": "rewards, a list of {name, weight, args}",
    "dataset": _OWN_DATA,
    "dataset_name": _OWN_DATA,
    "train_dataset": _OWN_DATA,
    "eval_dataset": "task.args: validation_path and test_path",
    "wandb_project": "the environment variable WANDB_PROJECT",
    "save_method": "merge.method",
    "token": "the environment variable HF_TOKEN",
    "hf_token": "the environment variable HF_TOKEN",
    "push_to_hub_token": "the environment variable HF_TOKEN",
    "push_to_hub_model_id": "merge.push_to",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR (else the run's folder)",
    "overwrite_output_dir": "the command line: --overwrite",
    "no_cuda": "the environment variable CUDA_VISIBLE_DEVICES, set to nothing",
}  # fmt: skip

# Name of then -> why there is nothing to write.
GONE = {
    "dtype": "a GPU takes bfloat16 where it can, else float16; a CPU takes float32",
    "torch_dtype": "a GPU takes bfloat16 where it can, else float16; a CPU takes float32",
    "load_in_8bit": "the base is held in 4-bit (model.load_in_4bit) or in 16-bit",
    "bias": "only a plain LoRA can be merged by streaming",
    "use_rslora": "only a plain LoRA is trained; lora.alpha sets its scale",
    "use_dora": "only a plain LoRA can be merged by streaming",
    "loftq_config": "only a plain LoRA can be merged by streaming",
    "vllm_device": "the engine shares the trainer's GPU (rollouts.engine)",
    "vllm_dtype": "the engine takes the trainer's",
    "vllm_enable_prefix_caching": "the engine decides it",
    "enforce_eager": "the engine decides it",
    "unsloth_num_chunks": "Unsloth chooses it by the memory there is",
    "unsloth_logit_chunk_multiplier": "Unsloth chooses it by the memory there is",
    "unsloth_grpo_mini_batch": "Unsloth chooses it by the memory there is",
    "save_safetensors": "weights are always safetensors",
    "group_by_length": "the trainer draws its prompts by itself",
    "tokenizer": "it is the model's own",
    "processing_class": "it is the model's own",
    "packing": "it belongs to supervised fine-tuning",
    "dataset_text_field": "it belongs to supervised fine-tuning",
    "dataset_num_proc": "it belongs to supervised fine-tuning",
}


def said_today(name: str) -> str | None:
    """' Today ...' for a name of then; None for any other."""
    if name in MOVED:
        return f" Today this is {MOVED[name]}."
    return f" Leave it away: {GONE[name]}." if name in GONE else None
