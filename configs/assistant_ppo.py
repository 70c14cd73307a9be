# An assistant: the newest run of configs/assistant_chat.py, tuned so that a reward model gives its answers
# high scores (PPO).
#     python tune.py configs/assistant_ppo.py

method = "ppo"
init_from = "run:assistant_chat"
reward_model = "run:assistant_reward_model"
tasks = "arithmetic counting reversing spelling"
prompts = 32  # questions of a step
group = 8  # answers to each
beta = 0.05

max_new_tokens = 50  # a sum of three digits takes 36, and a preamble 11

learning_rate = 1e-4
max_iters = 20
min_lr = 0.0

eval_interval = 10
log_interval = 10
