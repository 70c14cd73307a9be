# A model that scores answers: the newest run of configs/assistant_chat.py with a scalar head, trained on the
# same pairs as configs/assistant_preference.py.
#     python tune.py configs/assistant_reward_model.py
#     python tune.py configs/assistant_ppo.py              takes its scores

method = "reward"
init_from = "run:assistant_chat"
tasks = "arithmetic counting reversing spelling"
pairs = 800
temperature = 0.7  # fewer slips, as many preambles
flipped = 0.1
prompts = 50  # pairs of a step
batch_size = 100

max_new_tokens = 50  # a sum of three digits takes 36, and a preamble 11

learning_rate = 3e-4
max_iters = 40
min_lr = 0.0

log_interval = 10
