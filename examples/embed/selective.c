/* Mamba's selective scan in plain C: one pass over a sequence, and the same token by token with the
 * state in place, which has to give the same outputs. */
#include <heed/ewscan.h>
#include <heed/parallel.h>
#include <math.h>
#include <stdio.h>

enum { TOKENS = 60, CHANNELS = 24, STATES = 16 };

static float x[TOKENS][CHANNELS], dt[TOKENS][CHANNELS], rate[CHANNELS][STATES];
static float write_with[TOKENS][STATES], read_with[TOKENS][STATES], state[CHANNELS][STATES];
static float one_pass[TOKENS][CHANNELS], stepwise[TOKENS][CHANNELS];

/* A contiguous float32 view of two to four sizes. */
static heed_view view_of(float* data, int rank, int64_t a, int64_t b, int64_t c, int64_t d) {
  heed_view view = {data, HEED_FLOAT32, HEED_CPU, 0, {0}, {0}};
  const int64_t sizes[4] = {a, b, c, d};
  int64_t stride = 1;
  view.rank = rank;
  for (int i = rank - 1; i >= 0; --i) {
    view.sizes[i] = sizes[i];
    view.strides[i] = stride;
    stride *= sizes[i];
  }
  return view;
}

/* The tensors of `tokens` tokens from `first` on. */
static heed_selective_scan_tensors tensors_of(int64_t first, int64_t tokens, float* out) {
  heed_selective_scan_tensors t = {0};
  t.x = view_of(x[first], 3, 1, tokens, CHANNELS, 0);
  t.dt = view_of(dt[first], 3, 1, tokens, CHANNELS, 0);
  t.A = view_of(&rate[0][0], 2, CHANNELS, STATES, 0, 0);
  t.B = view_of(write_with[first], 4, 1, tokens, 1, STATES);
  t.C = view_of(read_with[first], 4, 1, tokens, 1, STATES);
  t.out = view_of(out, 3, 1, tokens, CHANNELS, 0);
  return t;
}

static void fill(float* data, int n, float from, float to, unsigned* seed) {
  for (int i = 0; i < n; ++i) {
    *seed = *seed * 1664525u + 1013904223u;
    data[i] = from + (to - from) * (float)(*seed >> 8) / (float)(1 << 24);
  }
}

int main(void) {
  unsigned seed = 1;
  fill(&x[0][0], TOKENS * CHANNELS, -1, 1, &seed);
  fill(&dt[0][0], TOKENS * CHANNELS, 0, 0.2f, &seed);
  fill(&rate[0][0], CHANNELS * STATES, -4, -0.1f, &seed);
  fill(&write_with[0][0], TOKENS * STATES, -1, 1, &seed);
  fill(&read_with[0][0], TOKENS * STATES, -1, 1, &seed);

  char message[256];
  heed_run run = {0};
  run.struct_size = sizeof run;
  run.parallel = heed_thread_pool_create(2);
  run.message = message;
  run.message_size = sizeof message;
  heed_selective_scan_tensors tensors = tensors_of(0, TOKENS, &one_pass[0][0]);
  if (heed_selective_scan(&tensors, NULL, NULL, &run) != HEED_OK) {
    fprintf(stderr, "one pass: %s\n", message);
    return 1;
  }
  run.pass = HEED_STEP;
  double largest = 0;
  for (int64_t t = 0; t < TOKENS; ++t) {
    tensors = tensors_of(t, 1, stepwise[t]);
    tensors.initial_state = tensors.final_state = view_of(&state[0][0], 3, 1, CHANNELS, STATES, 0);
    if (heed_selective_scan(&tensors, NULL, NULL, &run) != HEED_OK) {
      fprintf(stderr, "token %d: %s\n", (int)t, message);
      return 1;
    }
    for (int c = 0; c < CHANNELS; ++c) {
      largest = fmax(largest, fabs(stepwise[t][c] - one_pass[t][c]));
    }
  }
  heed_thread_pool_destroy((heed_parallel*)run.parallel);
  printf("selective scan, %d tokens one by one: largest difference to one pass %.2g\n", TOKENS,
         largest);
  return largest < 1e-5 ? 0 : 1;
}
