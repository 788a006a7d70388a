#include "train/evaluate.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "data/random.h"
#include "train/loss.h"

namespace heed::train {
namespace {

// Without gradients a pass runs over caches' job tables, which the CPU is best at; on a GPU the
// operator over whole sequences is.
void use_operator_on_gpu(const Decoder& model, Pass& pass) {
  if (model.options().device.is_cpu()) return;
  pass.attention = [](int64_t, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      const op::AttendOptions& options) {
    return std::get<0>(op::attend(q, k, v, options));
  };
}

}  // namespace

DeviceBatch to_device(const data::Batch& batch, const at::Device& device) {
  DeviceBatch out;
  const auto count = static_cast<int64_t>(batch.ids.size());
  const at::Tensor ids = at::empty({1, count}, at::kLong);
  std::copy(batch.ids.begin(), batch.ids.end(), ids.data_ptr<int64_t>());
  const at::Tensor targets = at::empty({count}, at::kLong);
  std::copy(batch.targets.begin(), batch.targets.end(), targets.data_ptr<int64_t>());
  out.ids = ids.to(device);
  out.targets = targets.to(device);
  out.pass.cu_seqlens = batch.cu_seqlens;
  return out;
}

double mean_loss(const Decoder& model, const std::vector<data::Batch>& batches,
                 Progress& progress) {
  at::NoGradGuard no_grad;
  progress.begin("measuring the loss", static_cast<int64_t>(batches.size()));
  double sum = 0;
  int64_t count = 0, done = 0;
  for (const auto& batch : batches) {
    int64_t targets = 0;
    for (const int64_t target : batch.targets) targets += target >= 0;
    auto on_device = to_device(batch, model.options().device);
    use_operator_on_gpu(model, on_device.pass);
    const at::Tensor hidden = model.hidden(on_device.ids, on_device.pass);
    const at::Tensor loss =
        chunked_cross_entropy(hidden.flatten(0, 1), model.head().data, on_device.targets);
    sum += loss.item<double>() * static_cast<double>(targets);
    count += targets;
    progress.step(++done);
  }
  progress.end();
  if (count == 0) throw Error("no token is left to measure the loss on");
  return sum / static_cast<double>(count);
}

std::vector<RecallCell> passkey_recall(const Decoder& model, const data::RecallGenerator& generator,
                                       const std::vector<int64_t>& lengths,
                                       const std::vector<double>& depths, int64_t samples,
                                       uint64_t seed, Progress& progress) {
  at::NoGradGuard no_grad;
  std::vector<RecallCell> cells;
  for (const int64_t length : lengths) {
    for (const double depth : depths) cells.push_back({length, depth, 0, 0});
  }
  progress.begin("asking for passkeys", static_cast<int64_t>(cells.size()));
  data::Random random(seed, 0x7061737321);
  int64_t done = 0;
  for (RecallCell& cell : cells) {
    const int64_t most = std::max<int64_t>(1, 65536 / cell.length);  // samples a pass
    while (cell.asked < samples) {
      const int64_t rows = std::min(most, samples - cell.asked);
      std::vector<data::RecallSample> texts;
      const at::Tensor ids = at::empty({rows, cell.length}, at::kLong);
      std::vector<int64_t> ask, answer;  // flat positions before the answers' tokens, the tokens
      for (int64_t row = 0; row < rows; ++row) {
        texts.push_back(generator.passkey(cell.length, cell.depth, random));
        const auto& tokens = texts.back().tokens;
        std::copy(tokens.begin(), tokens.end(), ids[row].data_ptr<int64_t>());
        const auto& span = texts.back().answers[0];
        for (int64_t n = span.begin; n < span.end; ++n) {
          ask.push_back(row * cell.length + n - 1);
          answer.push_back(tokens[static_cast<size_t>(n)]);
        }
      }
      Pass pass;
      use_operator_on_gpu(model, pass);
      const auto device = model.options().device;
      const at::Tensor hidden = model.hidden(ids.to(device), pass).flatten(0, 1);
      const at::Tensor rows_asked = at::tensor(ask, at::kLong).to(device);
      const at::Tensor said =
          model.logits(hidden.index_select(0, rows_asked)).argmax(-1).to(at::kCPU).contiguous();
      const auto* at_token = said.data_ptr<int64_t>();
      size_t n = 0;
      for (const auto& text : texts) {
        bool right = true;
        for (int64_t k = text.answers[0].begin; k < text.answers[0].end; ++k, ++n) {
          right = right && at_token[n] == answer[n];
        }
        cell.right += right;
      }
      cell.asked += rows;
      check_interrupted();
    }
    progress.step(++done);
  }
  progress.end();
  return cells;
}

}  // namespace heed::train
