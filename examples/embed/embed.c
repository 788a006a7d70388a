/* Decoding with all six engines from plain C, on tensors of another library: DLPack in, DLPack out.
 * Each causal engine reads a sequence twice, in one pass and token by token with its state in
 * place, which has to give the same outputs; a pooled read, which has no state, is compared with
 * its definition. */
#include <heed/attend.h>
#include <heed/dlpack.h>
#include <heed/ewscan.h>
#include <heed/learn.h>
#include <heed/mix.h>
#include <heed/parallel.h>
#include <heed/pool.h>
#include <heed/scan.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { TOKENS = 60, HEADS = 4, DIM = 16, CHANNELS = HEADS * DIM };

static char message[256];
static heed_run run;

static void check(heed_status status) {
  if (status == HEED_OK) return;
  fprintf(stderr, "%s\n", message);
  exit(EXIT_FAILURE);
}

/* ---- tensors, as another library hands them over ---- */

/* A float32 tensor with numbers between `from` and `to`; sizes end with a 0. It lives as long as
 * the program. */
static heed_view tensor(const int64_t* sizes, float from, float to) {
  static unsigned seed = 1;
  heed_dl_tensor other = {0};
  heed_view view;
  int64_t count = 1;
  while (sizes[other.rank] != 0) count *= sizes[other.rank++];
  float* numbers = malloc((size_t)count * sizeof(float));
  if (numbers == NULL) exit(EXIT_FAILURE);
  for (int64_t i = 0; i < count; ++i) {
    seed = seed * 1664525u + 1013904223u;
    numbers[i] = from + (to - from) * (float)(seed >> 8) / (float)(1 << 24);
  }
  other.data = numbers;
  other.device.type = 1; /* the CPU */
  other.dtype.code = 2;  /* float */
  other.dtype.bits = 32;
  other.dtype.lanes = 1;
  other.sizes = (int64_t*)sizes;
  check(heed_view_from_dlpack(&other, &view, message, sizeof message));
  return view;
}

static const int64_t kTokens[] = {1, TOKENS, HEADS, DIM, 0}; /* queries, keys, values */
static const int64_t kGates[] = {1, TOKENS, HEADS, 0};
static const int64_t kInputs[] = {1, TOKENS, CHANNELS, 0};
static const int64_t kState[] = {1, HEADS, DIM, DIM, 0};

/* Token t of a tensor [1,TOKENS,...]. */
static heed_view at(heed_view view, int64_t t) {
  view.data = (float*)view.data + t * view.strides[1];
  view.sizes[1] = 1;
  return view;
}

static double difference(heed_view a, heed_view b) {
  double largest = 0;
  int64_t count = 1;
  for (int i = 0; i < a.rank; ++i) count *= a.sizes[i];
  for (int64_t i = 0; i < count; ++i) {
    largest = fmax(largest, fabs(((float*)a.data)[i] - ((float*)b.data)[i]));
  }
  return largest;
}

/* ---- the engines ---- */

/* Softmax attention through a window of 32 keys and 4 sinks; k and v are the cache, of which one
 * more token is filled at every step. */
static double attend(void) {
  heed_attend_options options;
  heed_attend_tensors t = {0};
  heed_attend_options_init(&options);
  options.window = 32;
  options.sinks = 4;
  const heed_view q = tensor(kTokens, -1, 1), out = tensor(kTokens, 0, 0);
  t.k = tensor(kTokens, -1, 1);
  t.v = tensor(kTokens, -1, 1);
  t.q = q;
  t.out = tensor(kTokens, 0, 0);
  check(heed_attend_forward(&t, &options, run.parallel, message, sizeof message));
  const heed_view one_pass = t.out;
  for (int64_t i = 0; i < TOKENS; ++i) {
    const int64_t filled = i + 1;
    t.q = at(q, i);
    t.out = at(out, i);
    t.kv_lengths = &filled;
    check(heed_attend_forward(&t, &options, run.parallel, message, sizeof message));
  }
  heed_attend_release();
  return difference(out, one_pass);
}

/* The gated delta rule: a matrix a head that forgets and corrects itself. */
static double scan(void) {
  heed_scan_tensors all = {0}, t;
  all.q = tensor(kTokens, -1, 1);
  all.k = tensor(kTokens, -0.25f, 0.25f);
  all.v = tensor(kTokens, -1, 1);
  all.beta = tensor(kGates, 0, 1);
  all.log_decay = tensor(kGates, -0.1f, 0);
  all.out = tensor(kTokens, 0, 0);
  run.pass = HEED_FORWARD;
  check(heed_scan(&all, NULL, NULL, &run));
  const heed_view out = tensor(kTokens, 0, 0), state = tensor(kState, 0, 0);
  run.pass = HEED_STEP;
  for (int64_t i = 0; i < TOKENS; ++i) {
    t = all;
    t.q = at(all.q, i);
    t.k = at(all.k, i);
    t.v = at(all.v, i);
    t.beta = at(all.beta, i);
    t.log_decay = at(all.log_decay, i);
    t.out = at(out, i);
    t.initial_state = t.final_state = state;
    check(heed_scan(&t, NULL, NULL, &run));
  }
  return difference(out, all.out);
}

/* Mamba's selective scan. */
static double selective_scan(void) {
  const int64_t rates[] = {CHANNELS, DIM, 0}, shared[] = {1, TOKENS, 1, DIM, 0};
  const int64_t states[] = {1, CHANNELS, DIM, 0};
  heed_selective_scan_tensors all = {0}, t;
  all.x = tensor(kInputs, -1, 1);
  all.dt = tensor(kInputs, 0, 0.2f);
  all.A = tensor(rates, -4, -0.1f);
  all.B = tensor(shared, -1, 1);
  all.C = tensor(shared, -1, 1);
  all.out = tensor(kInputs, 0, 0);
  run.pass = HEED_FORWARD;
  check(heed_selective_scan(&all, NULL, NULL, &run));
  const heed_view out = tensor(kInputs, 0, 0), state = tensor(states, 0, 0);
  run.pass = HEED_STEP;
  for (int64_t i = 0; i < TOKENS; ++i) {
    t = all;
    t.x = at(all.x, i);
    t.dt = at(all.dt, i);
    t.B = at(all.B, i);
    t.C = at(all.C, i);
    t.out = at(out, i);
    t.initial_state = t.final_state = state;
    check(heed_selective_scan(&t, NULL, NULL, &run));
  }
  return difference(out, all.out);
}

/* Titans' memory, trained on eight tokens at once; its state may stand between them. */
static double learn(void) {
  const int64_t positions[] = {1, 0};
  heed_learn_options options;
  heed_learn_tensors all = {0}, t;
  heed_learn_options_init(&options);
  options.chunk = 8;
  all.q = tensor(kTokens, -1, 1);
  all.k = tensor(kTokens, -0.25f, 0.25f);
  all.v = tensor(kTokens, -1, 1);
  all.alpha = tensor(kGates, 0, 0.1f);
  all.eta = tensor(kGates, 0, 0.9f);
  all.theta = tensor(kGates, 0, 0.1f);
  all.out = tensor(kTokens, 0, 0);
  run.pass = HEED_FORWARD;
  check(heed_learn(&all, NULL, &options, &run));
  const heed_view out = tensor(kTokens, 0, 0), memory = tensor(kState, 0, 0);
  const heed_view momentum = tensor(kState, 0, 0), running = tensor(kState, 0, 0);
  const heed_view position = tensor(positions, 0, 0);
  run.pass = HEED_STEP;
  for (int64_t i = 0; i < TOKENS; ++i) {
    t = all;
    t.q = at(all.q, i);
    t.k = at(all.k, i);
    t.v = at(all.v, i);
    t.alpha = at(all.alpha, i);
    t.eta = at(all.eta, i);
    t.theta = at(all.theta, i);
    t.out = at(out, i);
    t.initial_state = memory;
    t.initial_momentum = momentum;
    t.initial_running = running;
    t.initial_position = position;
    check(heed_learn(&t, NULL, &options, &run));
  }
  return difference(out, all.out);
}

/* A short convolution; its state is the last three inputs. */
static double short_conv(void) {
  const int64_t taps[] = {CHANNELS, 4, 0}, history[] = {1, 3, CHANNELS, 0};
  heed_short_conv_tensors all = {0}, t;
  all.x = tensor(kInputs, -1, 1);
  all.weight = tensor(taps, -1, 1);
  all.out = tensor(kInputs, 0, 0);
  run.pass = HEED_FORWARD;
  check(heed_short_conv(&all, NULL, NULL, &run));
  const heed_view out = tensor(kInputs, 0, 0), state = tensor(history, 0, 0);
  run.pass = HEED_STEP;
  for (int64_t i = 0; i < TOKENS; ++i) {
    t = all;
    t.x = at(all.x, i);
    t.out = at(out, i);
    t.initial_state = t.final_state = state;
    check(heed_short_conv(&t, NULL, NULL, &run));
  }
  return difference(out, all.out);
}

/* Linear attention that is not causal: out_i = sum_j (q_i.k_j) v_j / sum_j q_i.k_j. */
static double pool(void) {
  heed_pool_options options;
  heed_pool_tensors t = {0};
  heed_pool_options_init(&options);
  options.a0 = 0;
  options.a1 = 1;
  t.q = tensor(kTokens, 0, 1); /* features are positive */
  t.k = tensor(kTokens, 0, 1);
  t.v = tensor(kTokens, -1, 1);
  t.out = tensor(kTokens, 0, 0);
  run.pass = HEED_FORWARD;
  check(heed_pool(&t, NULL, &options, &run));
  const heed_view expected = tensor(kTokens, 0, 0);
  const float *q = t.q.data, *k = t.k.data, *v = t.v.data;
  for (int h = 0; h < HEADS; ++h) {
    for (int i = 0; i < TOKENS; ++i) {
      double sum = 0, read[DIM] = {0};
      for (int j = 0; j < TOKENS; ++j) {
        double weight = 0;
        for (int e = 0; e < DIM; ++e) {
          weight += q[(i * HEADS + h) * DIM + e] * k[(j * HEADS + h) * DIM + e];
        }
        sum += weight;
        for (int e = 0; e < DIM; ++e) read[e] += weight * v[(j * HEADS + h) * DIM + e];
      }
      for (int e = 0; e < DIM; ++e) {
        ((float*)expected.data)[(i * HEADS + h) * DIM + e] = (float)(read[e] / sum);
      }
    }
  }
  return difference(t.out, expected);
}

/* ---- out again ---- */

static int released = 0;
static void release(void* numbers) {
  free(numbers);
  ++released;
}

/* An output as a tensor of the other library, which reads it and lets it go. */
static int give_away(void) {
  const heed_view view = tensor(kInputs, 3, 3);
  heed_dl_managed* theirs;
  check(heed_view_to_dlpack(&view, release, view.data, &theirs, message, sizeof message));
  const int right = theirs->tensor.rank == 3 && theirs->tensor.sizes[1] == TOKENS &&
                    ((float*)theirs->tensor.data)[TOKENS] == 3;
  theirs->deleter(theirs);
  return right && released == 1;
}

/* A mistake is a status and a sentence, never a crash. */
static int refused(void) {
  heed_pool_tensors t = {0};
  t.q = t.k = tensor(kTokens, 0, 1);
  t.v = tensor(kGates, 0, 1);
  run.pass = HEED_FORWARD;
  if (heed_pool(&t, NULL, NULL, &run) != HEED_INVALID_ARGUMENT) return 0;
  printf("embed_c: a wrong shape is refused: %s\n", message);
  return 1;
}

int main(void) {
  const struct {
    const char* name;
    double (*difference)(void);
  } engines[] = {{"attend", attend}, {"scan", scan}, {"selective_scan", selective_scan},
                 {"learn", learn},   {"pool", pool}, {"short_conv", short_conv}};
  heed_parallel* threads = heed_thread_pool_create(2);
  int right = 1;
  run.struct_size = sizeof run;
  run.parallel = threads;
  run.message = message;
  run.message_size = sizeof message;
  for (size_t i = 0; i < sizeof engines / sizeof *engines; ++i) {
    const double largest = engines[i].difference();
    printf("embed_c: %-14s largest difference %.1e\n", engines[i].name, largest);
    right = right && largest < 1e-5;
  }
  right = right && give_away() && refused();
  heed_thread_pool_destroy(threads);
  return right ? EXIT_SUCCESS : EXIT_FAILURE;
}
