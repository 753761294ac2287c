"""Names that stand elsewhere today: what TRL or a copied notebook calls a thing, and what says it here.

Those of then are Unsloth's and TRL's in the GRPO notebooks of 2025: GRPOConfig, FastLanguageModel, get_peft_model and
GRPOTrainer in their versions of then. They are looked up only for a key that is unknown where it stands.
"""

from __future__ import annotations

from collections.abc import Mapping


def _by_name(names_by_text: Mapping[str, str]) -> dict[str, str]:
    """{name: text} of {text: the names it is said of}."""
    return {name: said for said, names in names_by_text.items() for name in names.split()}


# Fields of TRL's today that another place owns: a fact is set in one place only.
OWNED_ELSEWHERE = _by_name({
    "run.output_dir and run.name": "output_dir",
    "run.name": "run_name",
    "run.seed": "seed data_seed",
    "logging.report_to": "report_to trackio_space_id",
    "logging.sample_every (every completion is in the run's completions/ anyway)": "log_completions",
    "rollouts.engine": "use_vllm vllm_mode",
    "rollouts.url": "vllm_server_base_url vllm_server_host vllm_server_port",
    "model.gpu_memory_utilization": "vllm_gpu_memory_utilization",
    "model.max_seq_length": "vllm_max_model_length",
    "the weight of each entry under rewards": "reward_weights",
    "model.trust_remote_code": "trust_remote_code",
    "prompt.template_args (the trainer alone would read it here)": "chat_template_kwargs",
    "model": "model_init_kwargs",
    "the verb: src/train.py": "do_train",
    "evaluation": "do_eval do_predict",
    "evaluation.every_steps": "eval_strategy eval_steps",
    "evaluation (it always runs before training)": "eval_on_start",
    "evaluation.every_steps (the best adapter is always kept)": "load_best_model_at_end",
    "evaluation (strict accuracy on the validation split)": "metric_for_best_model",
    "nowhere: the progress bar is ours": "disable_tqdm",
    "nowhere: rewards need every column": "remove_unused_columns",
    "the command line: --resume": "resume_from_checkpoint",
    "merge.push_to": "push_to_hub hub_model_id hub_strategy",
    "the environment variable HF_TOKEN": "hub_token",
})  # fmt: skip

# What to write today <- the names of then.
MOVED = _by_name({
    "model.max_seq_length less grpo.max_completion_length: a prompt is never cut, and prompt.too_long says "
    "what becomes of one that does not fit":
        "max_prompt_length",
    "grpo.max_completion_length (prompt and answer together: model.max_seq_length)":
        "max_new_tokens max_tokens response_length",
    "model.max_seq_length": "max_length max_seq_length vllm_max_model_len",
    "model.gpu_memory_utilization": "gpu_memory_utilization",
    "evaluation.every_steps": "evaluation_strategy",
    "grpo.warmup_steps, which below 1 is a share of all steps (0.1: the first tenth)": "warmup_ratio",
    "grpo.num_train_epochs, with grpo.max_steps: -1": "epochs num_epochs",
    "grpo.max_steps": "steps",
    "grpo.per_device_train_batch_size": "batch_size train_batch_size per_gpu_train_batch_size",
    "grpo.num_generations": "num_sample_generations num_return_sequences group_size",
    "grpo.num_iterations": "num_ppo_epochs",
    "grpo.beta": "kl_coef init_kl_coef",
    "grpo.epsilon": "cliprange",
    "grpo.optim": "optimizer",
    "grpo.lr_scheduler_type": "lr_scheduler",
    "grpo.gradient_checkpointing (true or false)": "use_gradient_checkpointing",
    "grpo.use_liger_kernel": "use_liger_loss",
    "grpo.log_unique_prompts": "wandb_log_unique_prompts",
    "grpo.vllm_structured_outputs_regex": "vllm_guided_decoding_regex",
    "grpo.temperature, top_p, top_k, min_p and repetition_penalty; the rest under grpo.generation_kwargs":
        "vllm_sampling_params",
    "rollouts.engine: unsloth (or auto)": "fast_inference",
    "rollouts.standby": "unsloth_vllm_standby",
    "model.name": "model_name model_name_or_path pretrained_model_name_or_path",
    "lora: null": "full_finetuning",
    "lora (null trains all weights)": "use_peft",
    "lora.r": "max_lora_rank rank lora_r lora_rank",
    "lora.alpha": "lora_alpha",
    "lora.dropout": "lora_dropout",
    "lora.target_modules": "lora_target_modules",
    "run.seed": "random_state",
    "prompt.template": "chat_template",
    "prompt.system": "system_prompt",
    "rewards, a list of {name, weight, args}": "reward_funcs reward_functions",
    "task, for example {name: jsonl, args: {path: data/mine.jsonl}}": "dataset dataset_name train_dataset",
    "task.args: validation_path and test_path": "eval_dataset",
    "the environment variable WANDB_PROJECT": "wandb_project",
    "merge.method": "save_method",
    "the environment variable HF_TOKEN": "token hf_token push_to_hub_token",
    "merge.push_to": "push_to_hub_model_id",
    "the environment variable TENSORBOARD_LOGGING_DIR (else the run's folder)": "logging_dir",
    "the command line: --overwrite": "overwrite_output_dir",
    "the environment variable CUDA_VISIBLE_DEVICES, set to nothing": "no_cuda",
})  # fmt: skip

# Why there is nothing to write <- the names of then.
GONE = _by_name({
    "a GPU takes bfloat16 where it can, else float16; a CPU takes float32": "dtype torch_dtype",
    "the base is held in 4-bit (model.load_in_4bit) or in 16-bit": "load_in_8bit",
    "only a plain LoRA can be merged by streaming": "bias use_dora loftq_config",
    "only a plain LoRA is trained; lora.alpha sets its scale": "use_rslora",
    "the engine shares the trainer's GPU (rollouts.engine)": "vllm_device",
    "the engine takes the trainer's": "vllm_dtype",
    "the engine decides it": "vllm_enable_prefix_caching enforce_eager",
    "Unsloth chooses it by the memory there is":
        "unsloth_num_chunks unsloth_logit_chunk_multiplier unsloth_grpo_mini_batch",
    "weights are always safetensors": "save_safetensors",
    "the trainer draws its prompts by itself": "group_by_length",
    "it is the model's own": "tokenizer processing_class",
    "it belongs to supervised fine-tuning": "packing dataset_text_field dataset_num_proc",
})  # fmt: skip


def said_today(name: str) -> str | None:
    """' Today ...' for a name of then; None for any other."""
    if name in MOVED:
        return f" Today this is {MOVED[name]}."
    return f" Leave it away: {GONE[name]}." if name in GONE else None
