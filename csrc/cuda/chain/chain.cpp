#include "cuda/chain/chain.h"

#include <algorithm>
#include <climits>

#include "common/chain_checks.h"

namespace oes::cuda::chain {
namespace {

std::vector<int> as_ints(const Indices& indices) {
  return std::vector<int>(indices.begin(), indices.end());
}

} // namespace

template <typename T>
Chain<T>::Chain(
    int64_t networks, int64_t channels, int64_t rows, int64_t columns, bool constant_input, int64_t weights,
    conv::Products products, int device, const std::vector<int>& groups)
    : networks_(static_cast<int>(networks)),
      channels_(channels),
      rows_(rows),
      columns_(columns),
      weights_(weights),
      constant_input_(constant_input),
      device_(device),
      machine_{processors_of(device), shared_bytes_of(device), static_cast<int>(networks), products, groups} {
  expect(channels > 0 && rows > 0 && columns > 0 && weights >= 0, "chain: expected an image and weights");
  expect(networks > 0 && networks <= 65535, "networks: expected 1 to 65535");
  expect(
      channels <= 65535 && rows * columns <= INT_MAX / 4 && weights < INT_MAX,
      "chain: expected what 32 bits can count");
}

template <typename T>
void Chain<T>::add_conv(const ConvSpec& spec) {
  expect(!finished_, "convolution: expected a chain that is not finished");
  const Block* before = blocks_.empty() ? nullptr : &blocks_.back();
  expect(before == nullptr || !before->norms.empty(), "convolution: expected a norm before it");
  const int64_t inputs = before == nullptr ? channels_ : before->spec.outputs;
  const int64_t rows = before == nullptr ? rows_ : before->rows;
  const int64_t columns = before == nullptr ? columns_ : before->columns;
  const size_t constants = before == nullptr ? 0 : before->norms.back().spec.constants.size();
  check_conv(spec, inputs, rows, columns, static_cast<int64_t>(constants), weights_);
  expect(spec.padding != Padding::kCircular, "padding: expected one that the CUDA kernels have, not circular");
  expect(
      spec.kind != ConvKind::kUpsample ||
          (spec.kernel_rows == 3 && spec.kernel_columns == 3 &&
           (spec.padding == Padding::kZeros || spec.padding == Padding::kReplicate)),
      "convolution: expected 3 x 3 with zeros or replicated pixels around an up-sampled image");

  const DeviceGuard guard(device_);
  Block block;
  block.spec = spec;
  const auto in_rows = static_cast<int>(rows), in_columns = static_cast<int>(columns);
  const conv::ConvTaps taps = conv::conv_taps(spec, static_cast<int>(inputs), in_rows, in_columns);
  block.rows = taps.out_rows;
  block.columns = taps.out_columns;
  expect(block.rows > 0 && block.columns > 0, "convolution: expected an image as large as the kernel");
  expect(block.pixels() <= INT_MAX / 4 && spec.outputs <= 65535, "convolution: expected what 32 bits can count");
  block.forward =
      std::make_unique<conv::TapSumPlan<T>>(taps.forward, in_rows, in_columns, spec.scale, machine_, packed_table_);
  if (before != nullptr || !constant_input_) {
    block.input_grad = std::make_unique<conv::TapSumPlan<T>>(
        taps.input_grad, block.rows, block.columns, spec.scale, machine_, packed_table_);
  }
  block.weight_grad = std::make_unique<conv::WeightGradPlan<T>>(
      taps.weight_grad, in_rows, in_columns, block.rows, block.columns, spec.scale, machine_, grad_table_);

  // Taps of constant channels, by their output.
  std::vector<int> first(spec.bias.size() + 1), constant_taps;
  for (size_t o = 0; o < spec.bias.size(); ++o) {
    for (size_t i = 0; i < spec.constant_taps.size(); i += 3) {
      if (spec.constant_taps[i] == static_cast<int64_t>(o)) {
        constant_taps.push_back(static_cast<int>(spec.constant_taps[i + 1]));
        constant_taps.push_back(static_cast<int>(spec.constant_taps[i + 2]));
      }
    }
    first[o + 1] = static_cast<int>(constant_taps.size() / 2);
  }
  block.bias = DeviceArray<int>(as_ints(spec.bias));
  block.constant_first = DeviceArray<int>(first);
  block.constant_taps = DeviceArray<int>(constant_taps);
  block.prologue = DeviceArray<T>(static_cast<size_t>(networks_) * spec.outputs * norm::kPrologueNumbers);
  block.spec.taps.clear(); // on the device now
  block.spec.weights.clear();
  blocks_.push_back(std::move(block));
}

template <typename T>
void Chain<T>::add_norm(const NormSpec& spec) {
  expect(!blocks_.empty() && blocks_.back().norms.size() < 2, "norm: expected one or two behind a convolution");
  Block& block = blocks_.back();
  expect(block.spec.kind != ConvKind::kHead, "norm: expected none behind the head");
  expect(!finished_, "norm: expected a chain that is not finished");
  // A constant channel has what the convolution adds to it, or the constant of the norm before.
  const size_t constants =
      block.norms.empty() ? block.spec.bias.size() - block.spec.outputs : block.norms[0].spec.constants.size();
  check_norm(spec, block.spec.outputs, static_cast<int64_t>(constants), weights_);
  const DeviceGuard guard(device_);
  const auto channels = static_cast<size_t>(networks_) * block.spec.outputs;
  Norm norm;
  norm.spec = spec;
  norm.gamma = DeviceArray<int>(as_ints(spec.gamma));
  norm.beta = DeviceArray<int>(as_ints(spec.beta));
  norm.stats_index = DeviceArray<int>(as_ints(spec.stats_index));
  norm.tracked = DeviceArray<int>(as_ints(spec.tracked));
  norm.tracked_stats_index = DeviceArray<int>(as_ints(spec.tracked_stats_index));
  norm.betas = DeviceArray<int>(as_ints(spec.constants));
  norm.rstd = DeviceArray<double>(channels);
  norm.grads = DeviceArray<T>(channels * norm::kGradNumbers);
  norm.constants = DeviceArray<T>(static_cast<size_t>(networks_) * spec.constants.size());
  block.norms.push_back(std::move(norm));
}

template <typename T>
void Chain<T>::finish(OutputAct act, double slope) {
  expect(!blocks_.empty() && !finished_, "chain: expected a convolution, and to be finished once");
  const DeviceGuard guard(device_);
  act_ = act;
  slope_ = static_cast<T>(slope);
  int64_t most = channels_ * rows_ * columns_, partials = 1;
  for (size_t l = 0; l < blocks_.size(); ++l) {
    Block& block = blocks_[l];
    block.y = DeviceArray<T>(static_cast<size_t>(networks_ * block.spec.outputs * block.pixels()));
    most = std::max(most, block.spec.outputs * block.pixels());
    most_outputs_ = std::max(most_outputs_, block.spec.outputs);
    int64_t chunks = std::max(norm::pass_chunks(block.pixels()), block.forward->chunks());
    if (l + 1 < blocks_.size()) {
      chunks = std::max<int64_t>(chunks, blocks_[l + 1].input_grad->chunks());
    }
    partials = std::max(partials, block.spec.outputs * chunks * norm::kPartialNumbers);
  }
  for (DeviceArray<T>& buffer : grads_) {
    buffer = DeviceArray<T>(static_cast<size_t>(networks_ * most));
  }
  partials_ = DeviceArray<double>(static_cast<size_t>(networks_ * partials));
  side_ = std::make_unique<SideStream>();
  tickets_ = DeviceArray<unsigned>(std::vector<unsigned>(networks_ * most_outputs_, 0u));
  finish_weights();
  finished_ = true;
}

template <typename T>
void Chain<T>::finish_weights() {
  packed_size_ = static_cast<int64_t>(packed_table_.index.size());
  grad_size_ = static_cast<int64_t>(grad_table_.index.size());
  packed_ = DeviceArray<T>(static_cast<size_t>(networks_ * packed_size_));
  packed_index_ = DeviceArray<int>(packed_table_.index);
  packed_segments_ = DeviceArray<conv::WeightSegment<T>>(packed_table_.segments);
  grad_index_ = DeviceArray<int>(grad_table_.index);
  grad_segments_ = DeviceArray<conv::WeightSegment<T>>(grad_table_.segments);
  for (const conv::WeightSegment<T>& segment : grad_table_.segments) {
    grad_begins_.push_back(segment.begin);
  }
  grad_begins_.push_back(grad_size_);
  // Where two convolutions have a weight in common, their gradients are added one after the other.
  std::vector<bool> seen(static_cast<size_t>(weights_));
  for (const int index : grad_table_.index) {
    if (index >= 0) {
      shared_weights_ = shared_weights_ || seen[index];
      seen[index] = true;
    }
  }
  packed_table_ = {};
  grad_table_ = {};
}

template <typename T>
std::vector<int64_t> Chain<T>::shape() const {
  expect(!blocks_.empty(), "chain: expected a convolution");
  return {blocks_.back().spec.outputs, blocks_.back().rows, blocks_.back().columns};
}

template <typename T>
size_t Chain<T>::norms() const {
  size_t count = 0;
  for (const Block& block : blocks_) {
    count += block.norms.size();
  }
  return count;
}

template <typename T>
std::vector<std::string> Chain<T>::explain() const {
  std::vector<std::string> lines;
  for (const Block& block : blocks_) {
    lines.push_back(
        "forward: " + block.forward->description() +
        (block.input_grad == nullptr ? "" : "; input gradient: " + block.input_grad->description()) +
        "; weight gradient: " + block.weight_grad->description());
  }
  return lines;
}

template <typename T>
std::vector<conv::LaunchWork> Chain<T>::launches() const {
  std::vector<conv::LaunchWork> all;
  const auto flat = [&](const char* kernel, int64_t size, double read) {
    conv::LaunchWork work{};
    work.kernel = kernel;
    work.blocks = (size + 255) / 256 * networks_;
    work.threads = 256;
    work.staged = read * networks_;
    work.outputs = static_cast<double>(size) * networks_;
    all.push_back(work);
  };
  const auto pass = [&](const Block& block, double read, double written) {
    conv::LaunchWork work{};
    work.kernel = "norm_pass_kernel";
    work.blocks = static_cast<int64_t>(norm::pass_chunks(block.pixels())) * block.spec.outputs * networks_;
    work.threads = norm::kPassThreads;
    const double pixels = static_cast<double>(block.spec.outputs * block.pixels()) * networks_;
    work.staged = read * pixels;
    work.outputs = written * pixels;
    all.push_back(work);
  };
  const auto packed = finished_ ? packed_size_ : static_cast<int64_t>(packed_table_.index.size());
  flat("pack_weights_kernel", packed, static_cast<double>(packed));
  for (const Block& block : blocks_) {
    all.push_back(block.forward->work(networks_));
    if (block.norms.size() > 1) {
      pass(block, 1, 0);
    }
  }
  if (ends_in_norm()) {
    pass(blocks_.back(), 1, 1);
    if (blocks_.back().norms.size() > 1) {
      pass(blocks_.back(), 2, 0);
    }
  }
  pass(blocks_.back(), 2, 1);
  double partials = 0;
  for (size_t l = blocks_.size(); l-- > 0;) {
    const Block& block = blocks_[l];
    all.push_back(block.weight_grad->work(networks_));
    partials += all.back().outputs / networks_;
    if (l > 0 || block.input_grad != nullptr) {
      all.push_back(block.input_grad->work(networks_));
    }
    if (l > 0 && blocks_[l - 1].norms.size() > 1) {
      pass(blocks_[l - 1], 2, 1);
    }
  }
  flat("unpack_weight_grads_kernel", finished_ ? grad_size_ : static_cast<int64_t>(grad_table_.index.size()), partials);
  return all;
}

template class Chain<float>;
template class Chain<double>;

} // namespace oes::cuda::chain
