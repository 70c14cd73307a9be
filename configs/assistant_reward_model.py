# A model that scores answers: the newest run of configs/assistant_chat.py with a scalar head, trained on the
# same pairs as configs/assistant_preference.py.
#     python tune.py configs/assistant_reward_model.py
#     python tune.py configs/assistant_ppo.py              takes its scores

method = "reward"
init_from = "run:assistant_chat"
tasks = "arithmetic counting reversing"
pairs = 800
temperature = 1.3  # more of the answers differ than at 1
flipped = 0.1
prompts = 40  # pairs of a step
batch_size = 80

max_new_tokens = 40  # a sum of three digits takes 36

learning_rate = 3e-4
max_iters = 40
warmup_iters = 5
min_lr = 0.0
beta2 = 0.95
weight_decay = 0.0

eval_interval = 20
log_interval = 10
