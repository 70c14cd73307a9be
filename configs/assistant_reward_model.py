# A model that scores answers: the newest run of configs/assistant_chat.py with a scalar head, trained on the
# same pairs as configs/assistant_preference.py.
#     python tune.py configs/assistant_reward_model.py
#     python tune.py configs/assistant_ppo.py              takes its scores

method = "reward"
init_from = "run:assistant_chat"
tasks = "arithmetic counting reversing"
pairs = 2000
flipped = 0.1
prompts = 64  # pairs of a step

learning_rate = 3e-4
max_iters = 60
warmup_iters = 5
min_lr = 0.0
beta2 = 0.99
weight_decay = 0.0

eval_interval = 20
log_interval = 10
